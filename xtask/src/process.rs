//! Running a child: its output goes to a log and, live, to the terminal; it ends in time or is killed.
//!
//! Each child leads a process group of its own, so that a time limit or ctrl-C ends everything it started,
//! and nothing is left behind (a QEMU above all).

use crate::report::Live;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// The groups that run now: what ctrl-C has to end.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// The exit status of a process ended by SIGINT, as shells give it.
const INTERRUPTED: i32 = 130;

fn groups() -> MutexGuard<'static, Vec<Pid>> {
    // A list of numbers is whole whatever panicked meanwhile.
    GROUPS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// How a child ended.
#[derive(Debug)]
pub enum End {
    Exited(ExitStatus),
    TimedOut(Duration),
}

impl End {
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Exited(status) if status.success())
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "{status}"),
            Self::TimedOut(limit) => write!(f, "killed: not finished after {} s", limit.as_secs()),
        }
    }
}

/// Makes ctrl-C, SIGTERM and SIGHUP end all children before us.
pub fn install_interrupt_handler() -> Result<()> {
    ctrlc::set_handler(|| {
        // Held until the end, so that no child starts any more.
        let groups = groups();
        for &group in &*groups {
            _ = kill_process_group(group, Signal::KILL);
        }
        eprintln!("\ninterrupted");
        std::process::exit(INTERRUPTED);
    })
    .context("cannot catch ctrl-C")
}

/// Runs the command to its end. Both its outputs are appended to `log`, in order.
pub fn run(mut command: Command, log: &Path, live: &Live, limit: Option<Duration>) -> Result<End> {
    let program = command.get_program().to_string_lossy().into_owned();
    let (mut output, writer) = std::io::pipe().context("cannot make a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("cannot share a pipe")?)
        .stderr(writer)
        .process_group(0);
    let mut log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write the log {}", log.display()))?;
    let started = Instant::now();
    let (mut child, group) = Group::spawn(&mut command).with_context(|| format!("cannot start {program}"))?;
    // The command holds the pipe's writing end: without this the reader below would never see its end.
    drop(command);

    let show = live.clone();
    let reader = thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            let length = output.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            // Guests send NULs to keep a UART busy (`guest/moves.rs`). Nobody wants to see them.
            let bytes: Vec<u8> = buffer[..length].iter().copied().filter(|&byte| byte != 0).collect();
            log.write_all(&bytes)?;
            show.output(&bytes);
        }
    });
    let end = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {program}"))? {
            break End::Exited(status);
        }
        if let Some(limit) = limit.filter(|&limit| started.elapsed() > limit) {
            group.kill();
            _ = child.wait();
            break End::TimedOut(limit);
        }
        thread::sleep(Duration::from_millis(20));
    };
    // Whatever the child left running holds the pipe open.
    group.kill();
    match reader.join() {
        Ok(result) => result.with_context(|| format!("cannot keep the output of {program}"))?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    Ok(end)
}

/// A running process group; forgotten when dropped.
struct Group(Pid);

impl Group {
    /// Starts the leader; ctrl-C comes before it or finds it registered.
    fn spawn(command: &mut Command) -> std::io::Result<(Child, Self)> {
        let mut groups = groups();
        let child = command.spawn()?;
        let leader = Pid::from_child(&child);
        groups.push(leader);
        Ok((child, Self(leader)))
    }

    fn kill(&self) {
        _ = kill_process_group(self.0, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        groups().retain(|&group| group != self.0);
    }
}
