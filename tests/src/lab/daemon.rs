//! `fwbpf daemon` beside a firewall.

use std::io::{BufRead as _, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Fwbpf, Namespace};

/// Longest wait for the daemon to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon; dropping it ends it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Daemon {
    /// Starts it, and waits until it tells its supervisor, as which the test stands in, that it
    /// has had its first look.
    pub fn start(fwbpf: &Fwbpf, arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir().context("make a directory for a socket")?;
        let path = directory.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).context("bind the supervisor's socket")?;
        supervisor.set_read_timeout(Some(PATIENCE))?;
        let mut child = fwbpf
            .command()
            .arg("daemon")
            .args(arguments)
            .env("NOTIFY_SOCKET", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start fwbpf daemon")?;
        let output = child.stdout.take().context("it has no output")?;
        let output = BufReader::new(output).lines();
        let daemon = Self { child, output };
        let mut message = [0; 256];
        let length = supervisor
            .recv(&mut message)
            .context("the daemon does not get ready")?;
        let message = String::from_utf8_lossy(&message[..length]);
        anyhow::ensure!(message.contains("READY=1"), "the daemon says {message}");
        Ok(daemon)
    }
}

/// Asks a daemon's metrics endpoint in a namespace: the page that Prometheus would read.
pub fn scrape(namespace: &Namespace, address: &str) -> Result<String> {
    let text = namespace.enter(|| -> Result<String> {
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{text}");
    Ok(body.to_owned())
}

impl Daemon {
    /// Reads lines of its standard output until one holds `text`, and returns that one.
    pub fn line_with(&mut self, text: &str) -> Result<String> {
        let has = |line: &Result<String, _>| line.as_ref().is_ok_and(|line| line.contains(text));
        self.output
            .find(has)
            .with_context(|| format!("no line with {text}"))?
            .context("read its output")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // nsenter has become fwbpf by exec, so this ends the daemon itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
