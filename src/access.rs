//! Who may use the files of an index.

/// Who may use the files of an index, besides the superuser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileAccess {
    /// The owner alone: mode 0700 for the directory and 0600 for the files.
    #[default]
    Owner,
    /// Whoever the umask of the process permits: 0777 and 0666, less its bits.
    Umask,
}
