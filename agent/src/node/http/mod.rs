//! What a node says by HTTP: metrics, whether it is well, what it sees, and its audit records as they are written.
//!
//! | path | what |
//! |---|---|
//! | `/metrics` | OpenMetrics, or Prometheus' older text for who does not ask for it |
//! | `/healthz` | 200 while the node's loop turns, else 503 |
//! | `/readyz` | 200, or 503 with the reasons why it is not to be relied on fully |
//! | `/v1/pipes` | the pipes that are withheld or could be, and who holds them |
//! | `/v1/events` | server-sent events: audit records from now on |
//!
//! - [`board`]: what the node's loop puts up for others to read; nobody asks the loop itself.
//! - [`gate`]: whose requests are answered.
//! - [`serve`]: the one thread that has the connections, and how many.
//! - [`answer`]: what is answered; [`exposition`]: metrics in two dialects; [`events`]: the answer that does not end.
//! - [`patient`]: a connection whose peer takes nothing is given up.

pub mod answer;
pub mod board;
pub mod events;
pub mod exposition;
pub mod gate;
pub mod patient;
pub mod serve;

pub use board::Board;
pub use serve::{Limits, Listener, NoListener};
