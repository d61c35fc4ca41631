//! Progress of a call, and a way to stop it.

use std::ops::ControlFlow;

/// Observer of a call. `()` ignores everything.
pub trait Observer {
    /// Called before the first row, with the number of all rows if it is known.
    fn begun(&mut self, _rows: Option<u64>) {}

    /// Called after each batch, with the number of rows that are done. `Break` stops the call.
    fn advanced(&mut self, _rows: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Observer for () {}
