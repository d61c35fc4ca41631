//! Handling of SIGINT and SIGTERM. After the first signal, a command stops at the next safe place and reports its
//! progress. The second signal ends the process at once.

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

/// Exit code of the first signal. 0 before a signal, or if no [`Interrupt`] listens.
static CODE: AtomicU8 = AtomicU8::new(0);

/// Listener for the first signal.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    told: Arc<Notify>,
}

/// Returns the exit code of the first signal, if an [`Interrupt`] listens and received one.
pub(crate) fn code() -> Option<u8> {
    match CODE.load(Ordering::Acquire) {
        0 => None,
        code => Some(code),
    }
}

impl Interrupt {
    /// Starts to listen for signals. Without a listener, the first signal kills the process.
    ///
    /// The exit code is 130 for SIGINT and 143 for SIGTERM.
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

    /// Removes files, or directories with their contents, at the first signal, and ends the process.
    pub(crate) fn removes(self, paths: &[&Path]) -> Result<(), Failure> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
        let runtime = Builder::new_current_thread().build()?;
        thread::Builder::new().name("shardex-remove".into()).spawn(move || {
            runtime.block_on(self.wait());
            let mut line = "interrupted".to_owned();
            for path in &paths {
                let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
                match removed {
                    Ok(()) => line.push_str(&format!("; {} is removed", path.display())),
                    // The file has been renamed to its final name already.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => line.push_str(&format!("; remove {}: {error}", path.display())),
                }
            }
            output::complain(&line);
            std::process::exit(self.code().unwrap_or(2).into());
        })?;
        Ok(())
    }

    /// Returns the exit code of the first signal, if there was one.
    pub(crate) fn code(&self) -> Option<u8> {
        code()
    }

    /// Waits for the first signal. Only one caller may wait at a time.
    pub(crate) async fn wait(&self) {
        while self.code().is_none() {
            self.told.notified().await;
        }
    }
}
