//! Ctrl-C and a request to terminate: the first one is carried out at the next place where it is safe to stop and to say how
//! far the command has come; the second one stops at once.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
};

use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use super::{Failure, output};

/// Whether somebody wants this process to stop.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    /// The exit code of the signal; 0 while there was none.
    code: Arc<AtomicU8>,
    told: Arc<Notify>,
}

impl Interrupt {
    /// Listens from now on; a command that does not is ended by the first signal.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let (code, told) = (Arc::<AtomicU8>::default(), Arc::<Notify>::default());
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (mut int, mut term) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let interrupt = Self { code: Arc::clone(&code), told: Arc::clone(&told) };
        thread::Builder::new().name("shardex-signals".into()).spawn(move || {
            let mut next = || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = int.recv() => 130,
                        _ = term.recv() => 143,
                    }
                })
            };
            code.store(next(), Ordering::Release);
            told.notify_one();
            let second = next();
            output::complain("stopped at once; the next open recovers everything that was acknowledged");
            std::process::exit(second.into());
        })?;
        Ok(interrupt)
    }

    /// Removes a directory at the first signal, and ends the process.
    pub(crate) fn removes(self, dir: &Path) -> Result<(), Failure> {
        let dir: PathBuf = dir.to_path_buf();
        let runtime = Builder::new_current_thread().build()?;
        thread::Builder::new().name("shardex-remove".into()).spawn(move || {
            runtime.block_on(self.wait());
            match std::fs::remove_dir_all(&dir) {
                Ok(()) => output::complain(&format!("interrupted; {} is removed", dir.display())),
                Err(error) => output::complain(&format!("interrupted; remove {}: {error}", dir.display())),
            }
            std::process::exit(self.code().unwrap_or(2).into());
        })?;
        Ok(())
    }

    /// The exit code, if there was a signal.
    pub(crate) fn code(&self) -> Option<u8> {
        match self.code.load(Ordering::Acquire) {
            0 => None,
            code => Some(code),
        }
    }

    /// Waits for the first signal. One caller at a time.
    pub(crate) async fn wait(&self) {
        while self.code().is_none() {
            self.told.notified().await;
        }
    }
}
