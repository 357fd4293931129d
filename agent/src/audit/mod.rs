//! Every escape, withheld pipe, signal and refusal as one record: who, why, and what was checked.
//!
//! - [`record`]: the schema, as types: the envelope and the events.
//! - [`evidence`]: what makes a decision checkable afterwards.
//! - [`detail`]: what the events say that concern the run, a FIFO or the tracker.
//! - [`chain`]: how records hang together, as text: the hash is over bytes, never over meaning.
//! - [`writer`]: the queue and the thread behind it; an act waits for its record, but not for long.
//! - [`sink`]: one write(2) per record, to whatever `--audit` names.
//! - [`rotate`]: when a file is put aside, and under which name.
//! - [`verify`]: the same chain, read back.
//!
//! The chain shows that a log was damaged, cut or edited. It has no key: who can rewrite a whole
//! file can also compute a new chain for it. Against that, keep the head of a closed run (the hash
//! of its `run.finished`) somewhere else.

pub mod chain;
pub mod detail;
pub mod evidence;
pub mod record;
pub mod rotate;
pub mod sink;
pub mod verify;
pub mod writer;

pub use chain::Hash;
pub use record::{Body, Event, Record, RunId};
pub use rotate::Rotation;
pub use sink::{OpenError, Target};
pub use writer::{ACT_WAIT, Aside, Closing, Delivery, Log, Receipt};
