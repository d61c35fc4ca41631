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

/// The exit code of the first signal; 0 while there was none, or nobody listens.
static CODE: AtomicU8 = AtomicU8::new(0);

/// Whether somebody wants this process to stop.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    told: Arc<Notify>,
}

/// The exit code, if somebody listens and there was a signal.
pub(crate) fn code() -> Option<u8> {
    match CODE.load(Ordering::Acquire) {
        0 => None,
        code => Some(code),
    }
}

impl Interrupt {
    /// Listens from now on; a command that does not is ended by the first signal.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let told = Arc::<Notify>::default();
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (mut int, mut term) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let interrupt = Self { told: Arc::clone(&told) };
        thread::Builder::new().name("shardex-signals".into()).spawn(move || {
            let mut next = || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = int.recv() => 130,
                        _ = term.recv() => 143,
                    }
                })
            };
            CODE.store(next(), Ordering::Release);
            told.notify_one();
            let second = next();
            output::complain("stopped at once; the next open recovers everything that was acknowledged");
            std::process::exit(second.into());
        })?;
        Ok(interrupt)
    }

    /// Removes a file, or a directory with all that it holds, at the first signal, and ends the process.
    pub(crate) fn removes(self, path: &Path) -> Result<(), Failure> {
        let path: PathBuf = path.to_path_buf();
        let runtime = Builder::new_current_thread().build()?;
        thread::Builder::new().name("shardex-remove".into()).spawn(move || {
            runtime.block_on(self.wait());
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Ok(()) => output::complain(&format!("interrupted; {} is removed", path.display())),
                // It has its name by now.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => output::complain("interrupted"),
                Err(error) => output::complain(&format!("interrupted; remove {}: {error}", path.display())),
            }
            std::process::exit(self.code().unwrap_or(2).into());
        })?;
        Ok(())
    }

    /// The exit code, if there was a signal.
    pub(crate) fn code(&self) -> Option<u8> {
        code()
    }

    /// Waits for the first signal. One caller at a time.
    pub(crate) async fn wait(&self) {
        while self.code().is_none() {
            self.told.notified().await;
        }
    }
}
