//! Where lines go.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;

use anyhow::{Context as _, Result};

use super::text::{Said, level, line, prefix};
use crate::cli::LogTo;

/// The journal's socket (systemd's "Native Journal Protocol").
const JOURNAL: &str = "/run/systemd/journal/socket";

/// A place for lines.
pub(super) enum Sink {
    Kernel(File),
    Journal(UnixDatagram),
    Json,
    Stdout,
}

impl Sink {
    pub fn open(to: LogTo) -> Result<Self> {
        Ok(match to {
            LogTo::Kernel => Self::Kernel(
                OpenOptions::new()
                    .write(true)
                    .open("/dev/kmsg")
                    .context("cannot open the kernel's log, /dev/kmsg")?,
            ),
            LogTo::Journal => {
                let socket = UnixDatagram::unbound().context("cannot make a socket")?;
                socket
                    .connect(JOURNAL)
                    .with_context(|| format!("cannot reach the journal, {JOURNAL}"))?;
                // A journal that does not read must not stop the daemon's other work.
                socket.set_nonblocking(true)?;
                Self::Journal(socket)
            }
            LogTo::Json => Self::Json,
            LogTo::Stdout => Self::Stdout,
        })
    }

    /// Writes a line. One that finds no room is lost, as the kernel's own would be.
    pub fn write(&mut self, said: &Said<'_>) -> Result<()> {
        match self {
            // A write is a record (`devkmsg_write`, kernel/printk/printk.c).
            Self::Kernel(file) => {
                let _ = file.write(format!("<{}>{}", level(said), line(said)).as_bytes());
            }
            Self::Journal(socket) => {
                let _ = socket.send(journal_entry(said).as_bytes());
            }
            Self::Json => print(&json(said))?,
            Self::Stdout => print(&line(said))?,
        }
        Ok(())
    }
}

fn print(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()?;
    Ok(())
}

/// Fields by name, a line each: none has more than one line.
fn journal_entry(said: &Said<'_>) -> String {
    format!(
        "MESSAGE={}\nPRIORITY={}\nSYSLOG_IDENTIFIER=fwbpf\nFWBPF_PREFIX={}\nFWBPF_IN={}\nFWBPF_OUT={}\n\
         FWBPF_GENERATION={}\n",
        line(said),
        level(said),
        prefix(said),
        said.in_name,
        said.out_name,
        said.event.generation,
    )
}

fn json(said: &Said<'_>) -> String {
    let event = said.event;
    let bytes: String = event
        .packet()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let group = match said.target {
        crate::policy::model::Target::Nflog(nflog) => Some(nflog.group),
        _ => None,
    };
    let asked = matches!(said.target, crate::policy::model::Target::Log(log) if log.owner);
    let owner = asked && event.owned != 0;
    serde_json::json!({
        "monotonic_ns": event.time,
        "generation": event.generation,
        "prefix": prefix(said),
        "level": level(said),
        "nflog_group": group,
        "in": said.in_name,
        "out": said.out_name,
        "physin": said.in_port,
        "physout": said.out_port,
        "mark": event.mark,
        "uid": owner.then_some(event.user),
        "gid": owner.then_some(event.group),
        "bytes": event.bytes,
        "message": line(said),
        "packet": bytes,
    })
    .to_string()
}
