//! `fwbpf daemon`: what has to keep running.
//!
//! The firewall does not depend on it. It guards interfaces that appear, follows addresses,
//! deletes flows whose time is over (a packet that meets one treats it as absent anyway) and
//! exports metrics. Everything is read from the pins anew each time, so the daemon survives loads,
//! unloads and upgrades, and may be started before the first load.

mod expire;
mod follow;
pub mod log;
mod metrics;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use rtnetlink::MulticastGroup;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

use crate::cli::Daemon;
use crate::command::Failure;
use crate::command::output::Output;
use crate::kernel::state::StateDir;
use follow::Follower;

pub use metrics::render as render_metrics;

/// Runs the command, until a signal ends it.
pub fn run(state: &StateDir, arguments: &Daemon, output: &mut Output) -> Result<(), Failure> {
    // One thread: the work is little, and threads of a pool could be in another namespace.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    Ok(runtime.block_on(serve(state, arguments, output))?)
}

async fn serve(state: &StateDir, arguments: &Daemon, output: &mut Output) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Subscribed before the first look, so that no change falls between the two.
    let (connection, _handle, mut changes) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])
    .context("cannot subscribe to changes of interfaces and addresses")?;
    tokio::spawn(connection);

    if let Some(address) = arguments.metrics {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        output.say(format_args!(
            "metrics at http://{}/metrics",
            listener.local_addr()?
        ));
        tokio::spawn(metrics::serve(listener, state.clone()));
    }
    tokio::spawn(expire::run(state.clone()));
    log::warn_of_limit(arguments.log, output);
    log::start(state.clone(), arguments.log);

    let mut follower = Follower::new(state.clone());
    follower = follow(follower, output).await?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("cannot notify the supervisor")?;

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {}
            change = changes.next() => {
                if change.is_none() {
                    anyhow::bail!("the kernel closed the subscription to interface changes");
                }
                // Changes come in bursts; one look answers all that are already known.
                while changes.try_recv().is_ok() {}
            }
        }
        follower = follow(follower, output).await?;
    }
    output.say("ending; the firewall stays");
    Ok(())
}

/// One look at the interfaces, off the runtime's thread because it may wait for the lock.
async fn follow(mut follower: Follower, output: &Output) -> Result<Follower> {
    let (follower, report) = spawn_blocking(move || {
        let report = follower.follow();
        (follower, report)
    })
    .await
    .context("the look at the interfaces broke off")?;
    match report {
        Ok(lines) => lines.iter().for_each(|line| output.say(line)),
        // The next change, or SIGHUP, tries again; the firewall is as it was.
        Err(error) => output.warning(format_args!("{error:#}")),
    }
    Ok(follower)
}
