//! The firewall: which connections may be, by rules in order.
//!
//! # Theory of operation
//!
//! A connection is judged once, by its first packet: the first [`Rule`] that matches its [`Key`] decides, and if none does the
//! default. Whoever judges keeps the rule's number and [`Compiled::epoch`] with the connection, and judges it again when
//! the epoch has gone up, so a change of policy holds for connections under way too.
//!
//! Labels are names given to ports. What a label stands for is settled when the policy is compiled, so at run time
//! there are ports only.
//!
//! The cost of a judgement must not follow the number of rules. So rules are compiled to bit vectors, one bit per row (a rule, or
//! one of its alternatives) in order (Lakshman and Stiliadis' bit vectors with Baboescu and Varghese's aggregation, SIGCOMM 1998
//! and 2001): for every dimension (port, network, address, protocol, ...) there is a table from value to the vector of the
//! rows that mention the value, and one vector of the rows that don't care. The answer is the first bit of the AND over all
//! dimensions. Vectors are sparse, with a summary bit per word of 64 rows, so that the AND reads only words in which every
//! dimension has something. Whatever the rules are, that is at most a 64th of their number in steps. Tuple space
//! search is as quick for tame rules, but needs a look-up per combination of masks, which hostile ones make many of.
//! Memory is bounded: a set of rules that would need more is refused ([`CompileError`]).
//!
//! [`Compiled`] is shared by workers and by the control plane, and never changes, but for the counters and token buckets of rules;
//! those stay from one to the next where the rule does. Addresses of DNS names are learned at run time: [`Names`].

mod compile;
mod counters;
mod dimension;
mod explain;
mod lookup;
mod mark;
mod names;
mod rows;
mod rule;
mod spared;
#[cfg(test)]
mod tests;
mod vectors;

pub use compile::{CompileError, Compiled, MAX_RULES};
pub use counters::{Counts, LOG_BURST};
pub use explain::{Considered, Explanation, Field};
pub use mark::Mark;
pub use names::{MAX_LEARNED, MAX_PATTERNS, Names};
pub use rule::{
    Action, Decision, End, Key, LabelId, PolicyConfig, PortInfo, Rule, State, StateSet,
};
pub use spared::is_exempt;
pub(crate) use spared::{is_exempt_icmp6, is_exempt_udp};
