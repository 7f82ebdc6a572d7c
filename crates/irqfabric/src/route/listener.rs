//! Who listens to a vector's eventfd, as a state machine; the table is in the module above.

/// Who takes events from a vector's eventfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Listener {
    /// There is no eventfd: the vector is signalled in-process only.
    #[default]
    Nobody,
    /// The dispatcher. There is no route.
    Cold,
    /// The kernel, by an irqfd on the vector's route.
    Hot,
    /// The dispatcher, which keeps what comes as pending. The route is kept, without an irqfd.
    Masked,
    /// The vector is gone.
    Dropped,
}

/// What happens to a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A device asks for the eventfd.
    Lend,
    /// The route of its message is in force.
    Promote,
    /// Its message means another interrupt now.
    Change,
    /// Its message means no interrupt any more, or what it means is not known.
    Forget,
    /// The guest masks it.
    Mask,
    /// The guest unmasks it.
    Unmask,
    /// Its function is switched off.
    Disable,
    /// Its GSI is needed elsewhere.
    Evict,
    /// Nobody holds it any more.
    Drop,
}

/// What must be done for it, under the vector's lock and before anything else happens to the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Nothing,
    /// Add the eventfd to the dispatcher's.
    Listen,
    /// Attach the irqfd, then read the eventfd once: the kernel has injected that count and left it there.
    Attach,
    /// Detach the irqfd and keep the route.
    DetachKeepingRoute,
    /// Detach the irqfd, then give the route back: an irqfd without a route would swallow its events.
    Detach,
    /// Give the route back.
    Release,
    /// Bring the route in force up to date, or [`Detach`](Self::Detach) after all.
    Reroute,
}

impl Listener {
    /// The next state, and what it takes.
    pub(crate) const fn on(self, event: Event) -> (Self, Action) {
        match (self, event) {
            (Self::Nobody, Event::Lend) => (Self::Cold, Action::Listen),
            (Self::Cold, Event::Promote) => (Self::Hot, Action::Attach),
            (Self::Hot, Event::Change) => (Self::Hot, Action::Reroute),
            (Self::Hot, Event::Mask) => (Self::Masked, Action::DetachKeepingRoute),
            (Self::Hot, Event::Forget | Event::Disable | Event::Evict) => (Self::Cold, Action::Detach),
            (Self::Masked, Event::Unmask) => (Self::Hot, Action::Attach),
            (Self::Masked, Event::Change | Event::Forget | Event::Disable | Event::Evict) => {
                (Self::Cold, Action::Release)
            }
            (Self::Hot, Event::Drop) => (Self::Dropped, Action::Detach),
            (Self::Masked, Event::Drop) => (Self::Dropped, Action::Release),
            (Self::Nobody | Self::Cold, Event::Drop) => (Self::Dropped, Action::Nothing),
            (stays, _) => (stays, Action::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transitions_are_those_of_the_documented_table() {
        use Event::*;
        let states = [Listener::Nobody, Listener::Cold, Listener::Hot, Listener::Masked, Listener::Dropped];
        let events = [Lend, Promote, Change, Forget, Mask, Unmask, Disable, Evict, Drop];
        let every = states.into_iter().flat_map(|state| events.map(|event| (state, event)));
        let does_something = every.filter(|&(state, event)| state.on(event) != (state, Action::Nothing));
        let rows = does_something.map(|(state, event)| {
            let (next, action) = state.on(event);
            format!("//! | {state:?} | {event:?} | {next:?} | {action:?} |")
        });
        let documented = include_str!("mod.rs").lines().filter(|line| line.starts_with("//! | "));
        let documented = documented.skip_while(|line| !line.contains("Lend"));
        let (mut rows, mut documented): (Vec<_>, Vec<_>) = (rows.collect(), documented.map(String::from).collect());
        rows.sort();
        documented.sort();
        assert_eq!(rows, documented);
    }

    #[test]
    fn a_dropped_vector_stays_dropped() {
        for event in [Event::Lend, Event::Promote, Event::Unmask, Event::Drop] {
            assert_eq!(Listener::Dropped.on(event), (Listener::Dropped, Action::Nothing));
        }
    }
}
