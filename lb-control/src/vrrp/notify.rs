//! Changes of state as others are told of them, in keepalived's words, so that
//! programs made for it need not be changed.

use std::collections::{BTreeMap, VecDeque};

use super::machine::State;

/// What has another state now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A virtual router of one family.
    Instance {
        /// Its number.
        vrid: u8,
        /// Whether it is of IPv4.
        is_v4: bool,
    },
    /// All of a sync group.
    Group(String),
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// What has changed.
    pub who: Who,
    /// To this state.
    pub to: State,
    /// Its priority then; 0 for a group, as in keepalived.
    pub priority: u8,
    /// Why, in words.
    pub reason: String,
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Of a group, and not of a virtual router.
    pub is_group: bool,
    /// What it is called.
    pub name: String,
    /// Its state.
    pub state: State,
    /// Its priority.
    pub priority: u8,
    /// Why, in words.
    pub reason: String,
}

/// A state as keepalived calls it.
pub fn keepalived_name(state: State) -> &'static str {
    match state {
        State::Initialize => "STOP",
        State::Backup => "BACKUP",
        State::Active => "MASTER",
        State::Fault => "FAULT",
    }
}

impl Event {
    fn kind(&self) -> &'static str {
        if self.is_group { "GROUP" } else { "INSTANCE" }
    }

    /// What a program gets as its last arguments.
    pub fn arguments(&self) -> [String; 4] {
        [
            self.kind().to_owned(),
            self.name.clone(),
            keepalived_name(self.state).to_owned(),
            self.priority.to_string(),
        ]
    }

    /// What a FIFO gets, with the end of the line.
    pub fn line(&self) -> String {
        let state = keepalived_name(self.state);
        format!(
            "{} \"{}\" {state} {}\n",
            self.kind(),
            self.name,
            self.priority
        )
    }
}

/// What waits for its turn: never more than so much, in the order in which it came.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: VecDeque<T>,
    most: usize,
}

impl<T> Queue<T> {
    /// An empty one for `most` entries, at least 1.
    pub fn new(most: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            most: most.max(1),
        }
    }

    /// Another one, the last. Gives back the first when there is no room for both:
    /// what has been longest ago matters least.
    pub fn push(&mut self, entry: T) -> Option<T> {
        let is_full = self.waiting.len() >= self.most;
        let dropped = is_full.then(|| self.waiting.pop_front()).flatten();
        self.waiting.push_back(entry);
        dropped
    }

    /// The first one.
    pub fn pop(&mut self) -> Option<T> {
        self.waiting.pop_front()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// The states of sync groups, from those of their members.
#[derive(Debug, Default)]
pub struct Groups(BTreeMap<String, State>);

impl Groups {
    /// Each member's group and state as of now. Gives the groups all of which have
    /// gone to another state.
    pub fn follow(&mut self, members: &[(String, State)]) -> Vec<(String, State)> {
        let mut now = BTreeMap::<&str, Vec<State>>::new();
        for (group, state) in members {
            now.entry(group).or_default().push(*state);
        }
        let gone = self
            .0
            .keys()
            .filter(|group| !now.contains_key(group.as_str()));
        let gone = gone.map(|group| (group.clone(), State::Initialize));
        let there = now.iter().filter_map(|(group, states)| {
            let state = together(states)?;
            let was = self.0.get(*group).copied().unwrap_or_default();
            (was != state).then(|| ((*group).to_owned(), state))
        });
        let changed: Vec<_> = gone.chain(there).collect();
        for (group, state) in &changed {
            match state {
                State::Initialize => self.0.remove(group),
                _ => self.0.insert(group.clone(), *state),
            };
        }
        changed
    }
}

/// The state of a group; `None` while its members are between two.
fn together(states: &[State]) -> Option<State> {
    if states.contains(&State::Fault) {
        return Some(State::Fault);
    }
    let first = states.first().copied()?;
    states.iter().all(|state| *state == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(is_group: bool, state: State, priority: u8) -> Event {
        Event {
            is_group,
            name: "VI_1".into(),
            state,
            priority,
            reason: "started".into(),
        }
    }

    /// `vrrp_notify.c` of keepalived.
    #[test]
    fn programs_and_fifos_are_told_in_keepalived_s_words() {
        for (event, arguments, line) in [
            (
                event(false, State::Active, 100),
                "INSTANCE VI_1 MASTER 100",
                "INSTANCE \"VI_1\" MASTER 100\n",
            ),
            (
                event(false, State::Initialize, 7),
                "INSTANCE VI_1 STOP 7",
                "INSTANCE \"VI_1\" STOP 7\n",
            ),
            (
                event(false, State::Backup, 7),
                "INSTANCE VI_1 BACKUP 7",
                "INSTANCE \"VI_1\" BACKUP 7\n",
            ),
            (
                event(true, State::Fault, 0),
                "GROUP VI_1 FAULT 0",
                "GROUP \"VI_1\" FAULT 0\n",
            ),
        ] {
            assert_eq!(event.arguments().join(" "), arguments);
            assert_eq!(event.line(), line);
        }
    }

    #[test]
    fn the_queue_keeps_the_order_and_drops_the_oldest() {
        let mut queue = Queue::new(3);
        let dropped: Vec<_> = (1..=5).filter_map(|n| queue.push(n)).collect();
        assert_eq!(dropped, [1, 2]);
        assert_eq!(queue.len(), 3);
        let left: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(left, [3, 4, 5]);
        assert!(queue.is_empty());
        assert_eq!(queue.push(6), None);
    }

    #[test]
    fn a_group_changes_once_all_of_it_have() {
        use State::{Active, Backup, Fault, Initialize};
        let mut groups = Groups::default();
        for (number, (states, expected)) in [
            (vec![Initialize, Initialize], None),
            (vec![Backup, Initialize], None),
            (vec![Backup, Backup], Some(Backup)),
            (vec![Backup, Backup], None),
            (vec![Active, Backup], None),
            (vec![Active, Active], Some(Active)),
            (vec![Active, Fault], Some(Fault)),
            (vec![Fault, Fault], None),
            (vec![Backup, Backup], Some(Backup)),
            (vec![], Some(Initialize)),
            (vec![], None),
        ]
        .into_iter()
        .enumerate()
        {
            let members: Vec<_> = states.iter().map(|s| ("site".to_owned(), *s)).collect();
            let expected: Vec<_> = expected
                .map(|s| ("site".to_owned(), s))
                .into_iter()
                .collect();
            assert_eq!(groups.follow(&members), expected, "step {number}");
        }
    }
}
