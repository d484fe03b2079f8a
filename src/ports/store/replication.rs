//! Whether what is committed can be lost with one machine.

/// How a database is copied elsewhere (PostgreSQL).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    /// `synchronous_commit`.
    pub commit: String,
    /// `synchronous_standby_names`.
    pub names: String,
    /// Standbys that are connected, as far as the role may see them.
    pub standbys: i64,
}

impl Replication {
    /// What is wrong with it, for a database in which money is.
    #[must_use]
    pub fn finding(&self) -> Option<String> {
        match self.commit.as_str() {
            "off" => Some(
                "synchronous_commit is off: a commit that was answered can be lost in a crash"
                    .to_owned(),
            ),
            "local" if self.standbys > 0 => {
                Some("synchronous_commit is local: no commit waits for a standby".to_owned())
            }
            _ if self.standbys > 0 && self.names.is_empty() => Some(format!(
                "{} standby(s), and synchronous_standby_names is empty: what was answered can be lost in a \
                 failover",
                self.standbys
            )),
            _ => None,
        }
    }
}
