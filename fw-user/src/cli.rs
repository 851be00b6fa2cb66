//! The command line: clap types only. Also the source of the man page.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args, ColorChoice, Parser, Subcommand};
use ipnet::IpNet;

use crate::kernel::attach::{Hook, XdpMode};
use crate::kernel::fast_path::FastPath;
use crate::kernel::state::DEFAULT_DIRECTORY;
use crate::policy::model::Family;

const EXIT_CODES: &str = "\
Exit codes:
  0  all went well
  1  the system failed: kernel, permissions, input or output
  2  the command line is wrong
  3  the policy was refused; nothing was changed
  4  no firewall is loaded
  5  what was asked for is not there (set del, set test)

Examples:
  fwbpf check rules.v4 rules.v6        what would be said about these files
  fwbpf load rules.v4 rules.v6         enforce them, in one step
  fwbpf show                           chains, rules and their counters
  fwbpf explain --in eth0 --src 203.0.113.7 --dst 198.51.100.10 --proto tcp --dport 22
  fwbpf unload                         back to no firewall";

const STATUS: &str = "\
Which interfaces have the programs and by which hook, where packets are dropped or forwarded early,
how full the tables of flows are, packets dropped and why, and what is degraded.

Examples:
  fwbpf status
  fwbpf status --json | jq .interfaces";

const UNLOAD: &str = "\
Afterwards nothing is filtered or translated, and no connection is known. To change a policy load
the new one instead: that is a single step.";

/// A firewall in BPF that reads iptables rule files.
///
/// The firewall lives in the kernel, in the network namespace in which it was loaded. It goes on
/// when the command ends, and needs no process to stay alive.
#[derive(Clone, Debug, Parser)]
#[command(name = "fwbpf", version, after_help = EXIT_CODES, color = ColorChoice::Auto)]
#[command(propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Print JSON
    #[arg(long, global = true, display_order = 900)]
    pub json: bool,
    /// When to use colours
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        display_order = 901
    )]
    pub color: ColorChoice,
    /// Directory in a bpffs that holds the firewall's pins
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "FWBPF_STATE_DIR",
        display_order = 902
    )]
    #[arg(default_value = DEFAULT_DIRECTORY, hide_default_value = false)]
    pub state_dir: PathBuf,
}

/// The subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Enforce a policy: one or more rule files, which together replace what runs
    Load(Load),
    /// Say what is wrong or doubtful about rule files; needs no root
    Check(Check),
    /// Print the running policy with its counters
    Show(Show),
    /// Print how the firewall is doing: interfaces, tables, drops
    #[command(after_help = STATUS)]
    Status,
    /// List the tracked connections, like conntrack -L
    Flows(Flows),
    /// List and change the sets of the running policy, like ipset
    Set(Set),
    /// List and change what `-m recent` remembers, like /proc/net/xt_recent
    #[command(after_help = RECENT)]
    Recent(Recent),
    /// Tell what the firewall does with a packet, step by step
    Explain(Box<Explain>),
    /// Keep the policy that `load --trial` put in force, or go back at once
    Confirm(Confirm),
    /// Remove the firewall: detach the programs, forget policy, counters and flows
    #[command(after_help = UNLOAD)]
    Unload,
    /// Attach to interfaces that appear, follow address changes, export metrics
    Daemon(Daemon),
    /// Bring the policy before back if the one that is about to be loaded is not confirmed
    #[command(hide = true)]
    Guard,
    /// Write the manual page to standard output
    #[command(hide = true)]
    Man,
}

/// Arguments of `flows`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Each line: protocol, seconds until the flow is forgotten, state, then addresses and ports as its
first packet had them and as the answers have them. All conditions given must hold.

A flow that is deleted is gone at once, with the port that it may have been translated to: what goes
on afterwards is judged anew.

Examples:
  fwbpf flows --dport 443
  fwbpf flows --address 198.51.100.0/24 --state ESTABLISHED
  fwbpf flows --delete --proto tcp --src 10.0.0.5 --dport 22
  fwbpf flows --json | jq length")]
pub struct Flows {
    /// Delete them, like conntrack -D; needs a condition
    #[arg(short = 'D', long, conflicts_with = "flush")]
    pub delete: bool,
    /// End all of them instead, like conntrack -F: what goes on afterwards is judged anew
    #[arg(short = 'F', long)]
    pub flush: bool,
    /// Which ones.
    #[command(flatten)]
    pub filter: FlowFilter,
}

/// Conditions on flows; those given must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct FlowFilter {
    /// One IP version only
    #[command(flatten)]
    pub family: FamilyArgs,
    /// Protocol: a name or a number
    #[arg(
        short,
        long = "proto",
        value_name = "PROTOCOL",
        visible_alias = "protonum"
    )]
    pub protocol: Option<String>,
    /// Source of the first packet, or a network
    #[arg(
        short,
        long = "src",
        value_name = "ADDRESS[/LENGTH]",
        visible_alias = "orig-src"
    )]
    pub source: Option<Network>,
    /// Destination of the first packet, or a network
    #[arg(
        short,
        long = "dst",
        value_name = "ADDRESS[/LENGTH]",
        visible_alias = "orig-dst"
    )]
    pub destination: Option<Network>,
    /// Source of the answers, or a network
    #[arg(short = 'r', long = "reply-src", value_name = "ADDRESS[/LENGTH]")]
    pub reply_source: Option<Network>,
    /// Destination of the answers, or a network
    #[arg(short = 'q', long = "reply-dst", value_name = "ADDRESS[/LENGTH]")]
    pub reply_destination: Option<Network>,
    /// Any of these four, or a network
    #[arg(short, long, value_name = "ADDRESS[/LENGTH]")]
    pub address: Option<Network>,
    /// Source port of the first packet
    #[arg(long = "sport", value_name = "PORT", visible_alias = "orig-port-src")]
    pub source_port: Option<u16>,
    /// Destination port of the first packet
    #[arg(long = "dport", value_name = "PORT", visible_alias = "orig-port-dst")]
    pub destination_port: Option<u16>,
    /// Source port of the answers
    #[arg(long = "reply-port-src", value_name = "PORT")]
    pub reply_source_port: Option<u16>,
    /// Destination port of the answers
    #[arg(long = "reply-port-dst", value_name = "PORT")]
    pub reply_destination_port: Option<u16>,
    /// State of TCP or SCTP, such as ESTABLISHED
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,
    /// Zone that CT has put it in; 0 for what is in none
    #[arg(short = 'w', long, value_name = "NUMBER")]
    pub zone: Option<u16>,
}

/// An address with the length of a prefix, by default all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = text.parse::<IpAddr>().map(IpNet::from);
        whole.or_else(|_| text.parse()).map(Self).map_err(|_| {
            "give an address or a network, such as 192.0.2.7 or 2001:db8::/32".to_owned()
        })
    }
}

/// `fwbpf set`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Sets come from files that `ipset save` wrote, loaded beside the rules. Changes take effect with the
next packet. A load replaces the sets that its files give, in the same step
as the rules, and with them what was added or deleted here; sets that no file gives stay as they
are as long as a rule asks for them.

Examples:
  fwbpf load rules.v4 blocked.ipset
  fwbpf set add blocked 203.0.113.0/24
  fwbpf set add seen 198.51.100.7,tcp:22 timeout 600
  fwbpf set list blocked > blocked.ipset")]
pub struct Set {
    /// What to do.
    #[command(subcommand)]
    pub command: SetCommand,
}

/// What `fwbpf set` does.
#[derive(Clone, Debug, Subcommand)]
pub enum SetCommand {
    /// Print a set, or all, as `ipset save` does
    List {
        /// The set
        name: Option<String>,
    },
    /// Add an element, or give one a new time
    Add {
        /// The set
        name: String,
        /// Such as 192.0.2.0/24 or 192.0.2.1,udp:53
        element: String,
        /// `timeout SECONDS`, 0 for ever, instead of the set's own time; `nomatch`, so that what
        /// the element contains is not in the set
        #[arg(value_name = "OPTION")]
        options: Vec<String>,
    },
    /// Delete an element
    Del {
        /// The set
        name: String,
        /// The element
        element: String,
    },
    /// Say whether an address or element is in a set
    Test {
        /// The set
        name: String,
        /// The element
        element: String,
    },
    /// Delete all elements of a set, or of all
    Flush {
        /// The set
        name: Option<String>,
    },
}

/// What is said below the options of `recent`.
const RECENT: &str = "\
What used to be written to a file of /proc/net/xt_recent:
  echo +192.0.2.1 > .../NAME     fwbpf recent add NAME 192.0.2.1
  echo -192.0.2.1 > .../NAME     fwbpf recent del NAME 192.0.2.1
  echo / > .../NAME              fwbpf recent flush NAME";

/// Arguments of `recent`.
#[derive(Clone, Debug, Args)]
pub struct Recent {
    /// What to do.
    #[command(subcommand)]
    pub command: RecentCommand,
}

/// What `fwbpf recent` does.
#[derive(Clone, Debug, Subcommand)]
pub enum RecentCommand {
    /// Print the addresses of a list, or of all, and how long ago their packets came
    List {
        /// The list
        name: Option<String>,
    },
    /// Add an address as if a packet had come from it just now
    Add {
        /// The list
        name: String,
        /// The address
        address: IpAddr,
    },
    /// Forget an address
    Del {
        /// The list
        name: String,
        /// The address
        address: IpAddr,
    },
    /// Forget all addresses of a list, or of all
    Flush {
        /// The list
        name: Option<String>,
    },
}

/// `--ipv4` and `--ipv6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
pub struct FamilyArgs {
    /// IPv4 only; files are iptables-save's
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// IPv6 only; files are ip6tables-save's
    #[arg(short = '6', long)]
    pub ipv6: bool,
}

/// What a policy is read from.
#[derive(Clone, Debug, Args)]
pub struct Files {
    /// Which IP version the files are for
    #[command(flatten)]
    pub family: FamilyArgs,
    /// Refuse what iptables would refuse, instead of warning
    #[arg(long)]
    pub strict: bool,
    /// rules.v4, rules.v6 (as iptables-save and ip6tables-save write them) or policy.toml, and
    /// sets as ipset save writes them
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// `fwbpf load`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
All files together are the new policy. It replaces the running one in a single step: each packet
meets either the old policy or the new. Connections go on, and rules that did not change keep
their counters. If anything fails, the old policy stays as it is.

The first load takes over the connections that the kernel's own tracking (nf_conntrack) knows, with
their translations. Remove the rules of iptables soon: of a connection that is busy while both
translate, answers may get lost.

With --drop-revoked the first packet of each connection is judged anew, as the new policy would judge
it, on the way that it would take now. Connections that are refused are cut: what still comes of them
is INVALID, and opens nothing. If it depends on what is not known of that packet any more (its length,
its mark, a limit's credit, and the like), the connection is kept, and counted. Connections that a
policy on trial has cut go on if it is not confirmed.

Examples:
  fwbpf load /etc/iptables/rules.v4 /etc/iptables/rules.v6
  fwbpf load policy.toml
  fwbpf load --trial 60 rules.v4 rules.v6    (then `fwbpf confirm`, from a new connection)
  iptables-save -c | fwbpf load --ipv4 --counters -")]
pub struct Load {
    /// The policy.
    #[command(flatten)]
    pub policy: Files,
    /// Start the counters of new rules with the [packets:bytes] of the files
    #[arg(long)]
    pub counters: bool,
    /// Where to drop early by XDP
    #[arg(long, value_name = "WHERE", value_enum, default_value_t)]
    pub xdp: XdpMode,
    /// Where established flows are forwarded past the network stack
    #[arg(long, value_name = "WHERE", value_enum, default_value_t)]
    pub fast_path: FastPath,
    /// What to attach to: tcx links, or clsact filters as on kernels before 6.6
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub hook: Hook,
    /// Do not take over the connections that the kernel's own tracking knows, on a first load
    #[arg(long)]
    pub no_import: bool,
    /// Cut the connections that the new policy would not let begin
    #[arg(long)]
    pub drop_revoked: bool,
    /// Bring back what was before, unless `fwbpf confirm` is run within so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub trial: Option<u32>,
}

/// `fwbpf confirm`.
#[derive(Clone, Copy, Debug, Args)]
#[command(after_help = "\
A policy on trial is in force as any other. Until it is confirmed, a process waits that brings the
one before back: the same rules, with their counters, or no firewall if there was none. It survives
the end of the session that started it, and tells the system's log what it did. Loading a policy
without --trial confirms, too; loading another with --trial starts the time anew, and what comes back
is still the last policy that was not on trial.

Example:
  fwbpf load --trial 60 rules.v4 rules.v6
  ssh root@this-machine fwbpf confirm")]
pub struct Confirm {
    /// Do not wait for the end of the trial: bring back what was before
    #[arg(long)]
    pub revert: bool,
}

/// `fwbpf check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Besides errors it warns of rules that can never match, services open on one IP version only, IPv6
without neighbour discovery, replies, loopback and ICMP errors that nothing lets in, limits that
limit nothing, a policy that would cut the SSH connection it is run from, and containers that are
open to the whole network.

Example:
  fwbpf check --strict rules.v4 rules.v6")]
pub struct Check {
    /// The policy.
    #[command(flatten)]
    pub policy: Files,
}

/// `fwbpf show`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  fwbpf show                       a table per chain: packets, bytes, rule, file and line
  fwbpf show --save --ipv4         what iptables-save -c would print
  fwbpf show --toml > policy.toml

With --json: a list of chains with their rules; with --save an object with the text for each IP
version, { \"ipv4\": TEXT, \"ipv6\": TEXT }; with --toml { \"toml\": TEXT }.")]
pub struct Show {
    /// Print as iptables-save -c and ip6tables-save -c do
    #[arg(long, conflicts_with = "toml")]
    pub save: bool,
    /// Print as policy.toml
    #[arg(long)]
    pub toml: bool,
    /// One IP version only
    #[command(flatten)]
    pub family: FamilyArgs,
}

/// `fwbpf explain`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("way").required(true).multiple(true).args(["in_interface", "out_interface"]))]
#[command(after_help = "\
With --in the packet comes from the network; with --out it is sent by this host; with both it is
forwarded. The packet takes the same code as in the kernel.

Examples:
  fwbpf explain --in eth0 --src 203.0.113.7 --dst 198.51.100.10 --proto tcp --dport 22
  fwbpf explain --policy rules.v4 --in docker0 --out eth0 --src 172.17.0.2 --dst 203.0.113.5 \\
      --proto udp --sport 5353 --dport 53
  fwbpf explain --in eth0 --src 203.0.113.7 --dst 198.51.100.10 --proto tcp --dport 443 \\
      --tcp-flags ACK --ctstate ESTABLISHED")]
pub struct Explain {
    /// Use these rule files instead of the running policy
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub policy: Vec<PathBuf>,
    /// Interface that the packet comes in by
    #[arg(long = "in", value_name = "INTERFACE")]
    pub in_interface: Option<String>,
    /// Interface that the packet leaves by
    #[arg(long = "out", value_name = "INTERFACE")]
    pub out_interface: Option<String>,
    /// Source address
    #[arg(long, value_name = "ADDRESS")]
    pub src: IpAddr,
    /// Destination address
    #[arg(long, value_name = "ADDRESS")]
    pub dst: IpAddr,
    /// Protocol: a name or a number
    #[arg(long, value_name = "PROTOCOL")]
    pub proto: String,
    /// Source port
    #[arg(long, value_name = "PORT")]
    pub sport: Option<u16>,
    /// Destination port
    #[arg(long, value_name = "PORT")]
    pub dport: Option<u16>,
    /// ICMP type, as a number or type/code
    #[arg(long, value_name = "TYPE[/CODE]")]
    pub icmp_type: Option<String>,
    /// TCP flags that are set
    #[arg(long, value_name = "FLAG,..", value_delimiter = ',')]
    pub tcp_flags: Vec<String>,
    /// Connection state; without it the packet opens a new connection, or, live, is looked up
    #[arg(long, value_name = "STATE")]
    pub ctstate: Option<String>,
}

/// `fwbpf daemon`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The firewall does not depend on the daemon: without it, packets are filtered all the same, but
interfaces that appear are not guarded until the next load.

Example:
  fwbpf daemon --metrics 127.0.0.1:9469

Signals: SIGHUP reads the interfaces anew; SIGTERM and SIGINT end the daemon, the firewall stays.")]
pub struct Daemon {
    /// Serve Prometheus metrics at http://ADDR:PORT/metrics
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Where to write what LOG and NFLOG say
    #[arg(long, value_name = "WHERE", value_enum, default_value_t)]
    pub log: LogTo,
}

/// Where the daemon writes what LOG and NFLOG say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogTo {
    /// The kernel's log, by /dev/kmsg, as the kernel itself writes it
    #[default]
    Kernel,
    /// The journal, with fields of its own
    Journal,
    /// Standard output, a JSON object a line
    Json,
    /// Standard output, as the kernel writes it
    Stdout,
}

impl FamilyArgs {
    /// The family asked for, if one was.
    pub fn chosen(self) -> Option<Family> {
        match (self.ipv4, self.ipv6) {
            (true, _) => Some(Family::Ipv4),
            (false, true) => Some(Family::Ipv6),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn families_exclude_each_other() {
        let parse = |args: &[&str]| Cli::try_parse_from(["fwbpf"].iter().chain(args));
        assert!(parse(&["check", "-4", "-6", "rules"]).is_err());
        assert!(parse(&["load"]).is_err(), "a policy needs a file");
        assert!(parse(&["show", "--save", "--toml"]).is_err());
        assert!(parse(&["load", "rules.v4", "--json", "--state-dir", "/x"]).is_ok());
        assert!(
            parse(&["explain", "--src", "::1", "--dst", "::1", "--proto", "tcp"]).is_err(),
            "a packet takes some way"
        );
    }
}
