//! What the tests and their fixtures share.
