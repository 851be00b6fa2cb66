//! What a person sees while something runs: a spinner with the last line of output on a terminal,
//! plain lines elsewhere, the time that each step took, and the whole output of a step that failed.

use std::{
    io::{BufRead, BufReader, IsTerminal, Write},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, a step that is still running says so this often.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Runs steps and shows them.
pub struct Progress {
    terminal: bool,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    /// Takes over Ctrl-C: the command that is running gets it too and ends by itself, and xtask
    /// lives long enough to put back what it had changed.
    pub fn new() -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
            .context("cannot install the handler for Ctrl-C")?;
        Ok(Self {
            terminal: std::io::stderr().is_terminal(),
            interrupted,
        })
    }

    /// One line that is not a step.
    pub fn say(&self, line: &str) {
        eprintln!("{line}");
    }

    /// Runs `command` out of sight: on a terminal its last line is shown beside the spinner.
    /// Its whole output appears only when it fails.
    pub fn run(&self, title: &str, command: &mut Command) -> Result<()> {
        let started = Instant::now();
        let mut step = Step::start(self.terminal, title);
        let (child, lines) = spawn_captured(command)?;
        let mut log = Vec::new();
        loop {
            match lines.recv_timeout(HEARTBEAT) {
                Ok(line) => {
                    step.detail(&line);
                    log.push(line);
                }
                Err(RecvTimeoutError::Timeout) => step.heartbeat(started.elapsed()),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = wait(child, command)?;
        step.finish(status.success(), started.elapsed());
        if !status.success() {
            for line in &log {
                eprintln!("    {line}");
            }
        }
        self.judge(status, command)
    }

    /// Runs `command` in full view, handing each line of its standard output to `watch` too.
    pub fn show(
        &self,
        title: &str,
        command: &mut Command,
        mut watch: impl FnMut(&str),
    ) -> Result<()> {
        self.say(&format!("\n== {title}"));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", name(command)))?;
        if let Some(stdout) = child.stdout.take() {
            let mut out = std::io::stdout().lock();
            for line in BufReader::new(stdout).split(b'\n') {
                let line = line.context("cannot read the command's output")?;
                let line = String::from_utf8_lossy(&line);
                writeln!(out, "{line}").context("cannot write to standard output")?;
                watch(&line);
            }
        }
        let status = wait(child, command)?;
        self.judge(status, command)
    }

    /// Runs `command` with this terminal as its own.
    pub fn hand_over(&self, command: &mut Command) -> Result<()> {
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", name(command)))?;
        let status = wait(child, command)?;
        self.judge(status, command)
    }

    /// Whether Ctrl-C was pressed: later steps are not to start.
    pub fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn judge(&self, status: ExitStatus, command: &Command) -> Result<()> {
        if self.interrupted() {
            bail!("interrupted");
        }
        if !status.success() {
            bail!("`{}` failed ({status})", line(command));
        }
        Ok(())
    }
}

/// A duration as people say it: `0.4 s`, `12 s`, `3 min 05 s`.
pub fn elapsed(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        _ => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

/// One step on the screen.
struct Step {
    title: String,
    bar: Option<ProgressBar>,
}

impl Step {
    fn start(terminal: bool, title: &str) -> Self {
        let bar = terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            let style = "{spinner:.cyan} {prefix} {elapsed:.dim}  {wide_msg:.dim}";
            bar.set_style(
                ProgressStyle::with_template(style).expect("the template above is well-formed"),
            );
            bar.set_prefix(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            eprintln!("- {title} ...");
        }
        Self {
            title: title.to_owned(),
            bar,
        }
    }

    fn detail(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(line.trim().to_owned());
        }
    }

    fn heartbeat(&self, after: Duration) {
        if self.bar.is_none() {
            eprintln!("  still at it: {} ({})", self.title, elapsed(after));
        }
    }

    fn finish(&mut self, success: bool, after: Duration) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let mark = if success { "ok" } else { "FAILED" };
        eprintln!("  {mark}  {} ({})", self.title, elapsed(after));
    }
}

/// Starts `command` with both its outputs in one pipe, read line by line in a thread of its own
/// so that the caller can also wake up to say that it still waits.
fn spawn_captured(command: &mut Command) -> Result<(Child, mpsc::Receiver<String>)> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let error_writer = writer.try_clone().context("cannot copy a pipe's end")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(error_writer)
        .spawn()
        .with_context(|| format!("cannot run {}", name(command)))?;
    // The command keeps its copies of the writing end until it is told otherwise, and the reader
    // would wait for them for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                break;
            }
        }
    });
    Ok((child, lines))
}

fn wait(mut child: Child, command: &Command) -> Result<ExitStatus> {
    child
        .wait()
        .with_context(|| format!("cannot wait for {}", name(command)))
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn line(command: &Command) -> String {
    let mut words = vec![name(command)];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_speech() {
        assert_eq!(elapsed(Duration::from_millis(430)), "0.4 s");
        assert_eq!(elapsed(Duration::from_secs(59)), "59 s");
        assert_eq!(elapsed(Duration::from_secs(185)), "3 min 05 s");
    }
}
