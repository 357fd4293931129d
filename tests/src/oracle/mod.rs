//! The oracle: what a view of the machine says about who holds which end of which pipe, compared with
//! what `/proc` says, holder by holder, after any operations of a troupe of actors.
//!
//! It predicts nothing. A [`script`] of operations, written by hand or by [chance](generate), is
//! [performed](troupe) up to a point where nobody moves; there the [truth] is read from /proc, the
//! [view] is asked, and both are [compared](compare). A script that shows a difference is made
//! [shorter](shrink) for as long as it still does.

pub mod compare;
pub mod generate;
pub mod liar;
pub mod live_map;
pub mod play;
pub mod script;
pub mod shrink;
pub mod task;
pub mod troupe;
pub mod truth;
pub mod view;
