//! One run from beginning to end: build, set up, keep everybody busy, bring to rest, stop, judge.

use super::board::{Board, RunFailed};
use super::control::{Control, Early};
use super::guest::{Guest, Stopped};
use super::judge::{Entries, Sent};
use super::kvm_guest::{self, KvmGuest};
use super::memory::GuestMemory;
use super::report::{Ended, Report, SourceReport};
use super::scenario::Scenario;
use super::script::{Begins, Binding, Done, Place, Script};
use super::sim_guest::SimGuest;
use super::source::{Pace, Progress, Source};
use crate::error::Error;
use crate::machine::{Host, StopSwitch};
use indicatif::{ProgressBar, ProgressStyle};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::chip::pic::Pic;
use irqfabric::fabric::Fabric;
use irqfabric::hv::{Hypervisor, Sim};
use irqfabric::record::Recorder;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// What the first entries into a guest may take on a slow host.
const FIRST_PATIENCE: Duration = Duration::from_secs(60);
/// What a handler or an answer may take on a fast one.
pub const LEAST_PATIENCE: Duration = Duration::from_secs(5);
/// On a slower one: so many times what an access took when nothing else was going on.
const PATIENCE_IN_ACCESSES: u32 = 1000;
/// On the slowest.
const MOST_PATIENCE: Duration = Duration::from_secs(20);
/// A run that is over before needs no progress bar.
const SHORT: Duration = Duration::from_secs(1);

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Session<'a> {
    /// How much.
    pub work: Work,
    /// Sources that signal by eventfds.
    pub eventfds: usize,
    /// vCPUs, 2 or more.
    pub cpus: usize,
    /// Which chip the guest begins with.
    pub begins: Begins,
    /// For everything random.
    pub seed: u64,
    /// What a handler or an answer may take at least; more on a slow machine.
    pub patience: Duration,
    /// Records what goes through the fabric.
    pub recorder: Option<&'a Recorder>,
    /// Set when the user has had enough.
    pub interrupted: &'a AtomicBool,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// So many signals in all.
    Count(u64),
    /// As many as can be sent in that time.
    For(Duration),
}

/// Where the interrupts go.
#[derive(Debug)]
pub enum Backend {
    /// To a guest on KVM.
    Kvm(Host),
    /// To software local APICs.
    Sim,
}

/// How far a run has come when it ends.
struct Ran {
    bindings: Vec<Binding>,
    done: Done,
    /// From the first signal to the end of the last source.
    busy: Duration,
    at_rest: bool,
}

impl Session<'_> {
    /// Runs it. An error means that there was nothing to run it on.
    pub fn run(&self, backend: Backend) -> Result<Report, Error> {
        match backend {
            Backend::Kvm(host) => {
                let machine = kvm_guest::machine(&host, self.cpus, self.begins, self.recorder)?;
                let memory = GuestMemory::new(machine.memory().clone());
                let stop = machine.stop_switch().clone();
                let (board, bindings) = self.board(memory, machine.fabric().clone(), stop)?;
                let guest = KvmGuest::start(machine, &board)?;
                Ok(self.run_on(&board, bindings, Box::new(guest), "kvm"))
            }
            Backend::Sim => self.run_sim(|sim| sim),
        }
    }

    /// On software local APICs, with something of the caller's between them and the fabric.
    fn run_sim<H: Hypervisor + 'static>(&self, between: impl FnOnce(Arc<Sim>) -> H) -> Result<Report, Error> {
        let sim = Arc::new(Sim::new(self.cpus as u32));
        let memory = GuestMemory::allocate()?;
        let mut builder = Fabric::builder(between(sim.clone())).ioapic(Ioapic::default());
        if self.begins == Begins::WithPic {
            let sim = sim.clone();
            builder = builder.pic(Pic::default()).kick(move |apic_id| sim.kick(apic_id));
        }
        if let Some(recorder) = self.recorder {
            builder = builder.record(recorder);
        }
        let fabric = builder.build()?;
        let stop = StopSwitch::default();
        let (board, bindings) = self.board(memory, fabric, stop.clone())?;
        let guest = SimGuest::start(sim, &board, stop)?;
        Ok(self.run_on(&board, bindings, Box::new(guest), "sim"))
    }

    fn board(
        &self,
        memory: GuestMemory,
        fabric: Fabric,
        stop: StopSwitch,
    ) -> Result<(Arc<Board>, Vec<Binding>), Error> {
        let scenario = Scenario::new(&fabric, &memory, self)?;
        let attached = scenario.attached();
        let control = Control::new(stop, FIRST_PATIENCE);
        let Scenario { sources, bindings, messages } = scenario;
        let board = Board::new(memory, fabric, sources, messages, &attached, self.cpus, control);
        Ok((Arc::new(board), bindings))
    }

    fn run_on(&self, board: &Board, bindings: Vec<Binding>, guest: Box<dyn Guest>, backend: &'static str) -> Report {
        let ran = self.keep_busy(board, bindings);
        // Before the vCPUs stop: this is what a hung interrupt looks like.
        let pins = board.fabric.ioapics().next().map(|(_, _, state)| state.pins).unwrap_or_default();
        let stopped = guest.stop();
        self.judge(board, ran, &stopped, &pins, backend)
    }

    fn keep_busy(&self, board: &Board, bindings: Vec<Binding>) -> Ran {
        let mut script = Script::new(board, bindings, self.begins, self.seed);
        let mut busy = Duration::ZERO;
        // The reason for a failure is in the board's control, from where the report takes it.
        let at_rest = self.play(board, &mut script, &mut busy).unwrap_or(false);
        Ran { done: script.done(), bindings: script.into_bindings(), busy, at_rest }
    }

    /// Returns whether everything was at rest in the end.
    fn play(&self, board: &Board, script: &mut Script, busy: &mut Duration) -> Result<bool, RunFailed> {
        let control = &board.control;
        let begun = Instant::now();
        let accesses = script.set_up()?;
        let scaled = begun.elapsed() / accesses * PATIENCE_IN_ACCESSES;
        control.set_patience(self.patience.max(scaled.min(MOST_PATIENCE)));
        let begun = Instant::now();
        let progress = Progress::new(&board.sources);
        let played = std::thread::scope(|scope| {
            let threads = self.start_sources(scope, &board.sources, &progress, control)?;
            let over = || threads.iter().all(ScopedJoinHandle::is_finished);
            let played = self.run_script(board, script, over);
            *busy = begun.elapsed();
            played
        });
        played?;
        script.rest(control.patience() * 2 / 5)
    }

    fn start_sources<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        sources: &'scope [Source],
        progress: &'scope Progress,
        control: &'scope Control,
    ) -> Result<Vec<ScopedJoinHandle<'scope, ()>>, RunFailed> {
        let start = |(number, source): (u64, &'scope Source)| {
            let seed = self.seed ^ number << 32;
            let thread = std::thread::Builder::new().name(source.name.clone());
            thread.spawn_scoped(scope, move || source.run(seed, progress, control)).map_err(|error| {
                control.end(Early::Failed(format!("cannot start a thread for {}: {error}", source.name)));
                RunFailed
            })
        };
        (0..).zip(sources).map(start).collect()
    }

    fn run_script(&self, board: &Board, script: &mut Script, over: impl Fn() -> bool) -> Result<(), RunFailed> {
        let control = &board.control;
        let begun = Instant::now();
        let sent = || board.sources.iter().map(|source| source.device().sent).sum();
        let mut bar = None;
        while !control.stopping() && !over() {
            if self.interrupted.load(Relaxed) {
                control.end(Early::Interrupted);
            }
            if script.uses_pic() && self.is_half_done(sent(), begun.elapsed()) {
                script.switch_to_ioapic()?;
            }
            script.step()?;
            script.breathe();
            let elapsed = begun.elapsed();
            if let Work::For(duration) = self.work
                && elapsed >= duration
            {
                control.enough();
            }
            if elapsed > SHORT && super::is_watched() {
                let done = if matches!(self.work, Work::Count(_)) { sent() } else { elapsed.as_secs() };
                bar.get_or_insert_with(|| progress_bar(self.work)).set_position(done);
            }
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(())
    }

    fn is_half_done(&self, sent: u64, elapsed: Duration) -> bool {
        match self.work {
            Work::Count(count) => sent >= count / 2,
            Work::For(duration) => elapsed >= duration / 2,
        }
    }

    fn judge(
        &self,
        board: &Board,
        mut ran: Ran,
        stopped: &Stopped,
        pins: &[irqfabric::chip::ioapic::PinState],
        backend: &'static str,
    ) -> Report {
        let mut sources: Vec<(usize, SourceReport)> = Vec::new();
        for binding in std::mem::take(&mut ran.bindings) {
            for (index, epochs) in binding.sources {
                let source = &board.sources[index];
                let device = *source.device();
                let entries = match (binding.place, source.pace) {
                    (Place::LevelPin(_), _) => Entries::Level,
                    (_, Pace::Waits) => Entries::OneEach,
                    (_, Pace::Free) => Entries::Coalescing,
                };
                let verdict = epochs.judge(Sent { newest: device.sent, entries }, source.slots());
                sources.push((index, SourceReport::new(source, binding.place, device, verdict)));
            }
        }
        sources.sort_by_key(|(index, _)| *index);
        let sources = sources.into_iter().map(|(_, report)| report).collect();
        let Ran { done, busy, at_rest, .. } = ran;
        Report::new(Ended { session: self, backend, board, done, busy, at_rest, sources, stopped, pins })
    }
}

fn progress_bar(work: Work) -> ProgressBar {
    let (all, template) = match work {
        Work::Count(count) => (count, "{bar:40} {human_pos} of {human_len} interrupts, {eta} left"),
        Work::For(duration) => (duration.as_secs(), "{bar:40} {pos} of {len} s"),
    };
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(all).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::super::layout;
    use super::super::report::Outcome;
    use super::super::scenario::check_room;
    use super::*;
    use irqfabric::hv::{Capacity, HvError, Route};
    use irqfabric::msg::{Acceptance, Interrupt};
    use std::sync::atomic::AtomicU64;

    static NEVER: AtomicBool = AtomicBool::new(false);

    fn session(seed: u64) -> Session<'static> {
        Session {
            work: Work::Count(2_000),
            eventfds: 4,
            cpus: 2,
            begins: Begins::WithIoapic,
            seed,
            patience: Duration::from_secs(5),
            recorder: None,
            interrupted: &NEVER,
        }
    }

    /// Does something to every 97th interrupt that is not a doorbell.
    struct Faulty<F>(Arc<Sim>, AtomicU64, F);

    impl<F: Fn(&Arc<Sim>, &Interrupt) + Send + Sync> Hypervisor for Faulty<F> {
        fn start(&self, pins: u32) -> Result<Capacity, HvError> {
            self.0.start(pins)
        }

        fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
            let tested = (layout::FIRST_VECTOR..layout::END_VECTOR).contains(&interrupt.vector);
            if tested && self.1.fetch_add(1, Relaxed) % 97 == 96 {
                (self.2)(&self.0, interrupt);
                return Ok(Acceptance::Accepted);
            }
            self.0.deliver(interrupt)
        }

        fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
            self.0.commit(routes)
        }
    }

    fn with_fault(fault: impl Fn(&Arc<Sim>, &Interrupt) + Send + Sync + 'static) -> Report {
        run_with_fault(session(1).work, fault)
    }

    fn run_with_fault(work: Work, fault: impl Fn(&Arc<Sim>, &Interrupt) + Send + Sync + 'static) -> Report {
        let session = Session { work, patience: Duration::from_millis(500), ..session(1) };
        session.run_sim(|sim| Faulty(sim, AtomicU64::new(0), fault)).unwrap()
    }

    #[test]
    fn runs_on_software_local_apics_pass() {
        for seed in 0..5 {
            let report = session(seed).run(Backend::Sim).unwrap();
            assert_eq!(report.outcome, Outcome::Passed, "{report}");
        }
    }

    #[test]
    fn runs_that_begin_with_the_pic_pass() {
        for seed in 0..5 {
            let report = Session { begins: Begins::WithPic, ..session(seed) }.run(Backend::Sim).unwrap();
            assert_eq!(report.outcome, Outcome::Passed, "{report}");
            assert!(report.by_pic() > 0, "{report}");
        }
    }

    #[test]
    fn a_run_with_more_vcpus_passes() {
        let report = Session { cpus: 7, ..session(1) }.run(Backend::Sim).unwrap();
        assert_eq!(report.outcome, Outcome::Passed, "{report}");
    }

    #[test]
    fn a_run_with_fewer_interrupts_than_sources_passes() {
        let report = Session { work: Work::Count(1), ..session(1) }.run(Backend::Sim).unwrap();
        assert_eq!(report.outcome, Outcome::Passed, "{report}");
    }

    #[test]
    fn an_interrupted_run_ends_in_order_and_says_so() {
        let interrupted = AtomicBool::new(true);
        let session = Session { work: Work::Count(u64::MAX), interrupted: &interrupted, ..session(1) };
        let report = session.run(Backend::Sim).unwrap();
        assert_eq!(report.outcome, Outcome::Interrupted, "{report}");
    }

    #[test]
    fn a_backend_that_loses_interrupts_is_found_out() {
        let report = with_fault(|_, _| {});
        assert_eq!(report.outcome, Outcome::Failed, "{report}");
        assert!(report.totals().lost > 0 || report.to_string().contains("hung"), "{report}");
    }

    #[test]
    fn a_backend_that_doubles_interrupts_is_found_out() {
        // Enough for dozens of faults: only those that fall on a source that waits can be told from coalescing.
        let report = run_with_fault(Work::Count(10_000), |sim, interrupt| {
            // Far enough apart, and from the next signal, that they do not become one in the IRR.
            for _ in 0..2 {
                sim.deliver(interrupt).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        assert_eq!(report.outcome, Outcome::Failed, "{report}");
        assert!(report.totals().doubled > 0, "{report}");
    }

    #[test]
    fn a_backend_that_misdelivers_interrupts_is_found_out() {
        let report = with_fault(|sim, interrupt| {
            sim.deliver(&Interrupt { destination: interrupt.destination ^ 1, ..*interrupt }).unwrap();
        });
        assert_eq!(report.outcome, Outcome::Failed, "{report}");
        assert!(report.totals().misdelivered > 0, "{report}");
    }

    #[test]
    fn a_backend_that_delivers_behind_a_mask_is_found_out() {
        // Long enough for a hundred masks.
        let work = Work::For(Duration::from_millis(500));
        let report = run_with_fault(work, |sim, interrupt| {
            sim.deliver(interrupt).unwrap();
            // An echo that no mask reaches, as of an irqfd that was left attached.
            let (sim, interrupt) = (sim.clone(), *interrupt);
            std::thread::spawn(move || {
                for _ in 0..100 {
                    std::thread::sleep(Duration::from_micros(200));
                    sim.deliver(&interrupt).unwrap();
                }
            });
        });
        assert_eq!(report.outcome, Outcome::Failed, "{report}");
        assert!(report.totals().masked > 0, "{report}");
    }

    #[test]
    fn a_run_by_time_ends_and_passes() {
        let work = Work::For(Duration::from_millis(300));
        let report = Session { work, eventfds: 20, ..session(1) }.run(Backend::Sim).unwrap();
        assert_eq!(report.outcome, Outcome::Passed, "{report}");
    }

    #[test]
    fn as_many_eventfds_as_there_are_vectors_for_and_no_more() {
        // The number that --help names.
        let report = Session { eventfds: 84, ..session(1) }.run(Backend::Sim).unwrap();
        assert_eq!(report.outcome, Outcome::Passed, "{report}");
        assert!(check_room(84).is_ok());
        assert!(check_room(85).unwrap_err().to_string().contains("more than 84"));
    }

    #[test]
    fn the_table_fits_a_terminal_and_json_is_one_object() {
        let report = session(1).run(Backend::Sim).unwrap();
        let table = report.to_string();
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["outcome"], "passed");
        assert_eq!(json["sources"].as_array().unwrap().len(), 20);
    }
}
