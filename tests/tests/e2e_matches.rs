//! Matches that only real sockets and hosts show.

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{CONTAINER2, INTERNET, OUTSIDE, SERVER};
use fwbpf_tests::lab::sockets::{datagram, ip, ping, send, udp};
use fwbpf_tests::lab::{Firewall, Namespace, run, saved};

/// Both IP versions with the same rules of the table filter.
fn both(rules: &str) -> [(Family, String); 2] {
    let text = |icmp: &str| {
        let rules = rules.replace("ICMP", icmp);
        format!("*filter\n{rules}COMMIT\n")
    };
    [
        (Family::Ipv4, text("icmp")),
        (Family::Ipv6, text("ipv6-icmp")),
    ]
}

fn load(fwbpf: &impl Firewall, rules: &str) -> Result<()> {
    let texts = both(rules);
    let texts: Vec<_> = texts
        .iter()
        .map(|(family, text)| (*family, text.as_str()))
        .collect();
    fwbpf.load(&texts)
}

/// As Oracle's images guard their boot disk: root may, others may not.
#[test]
fn packets_belong_to_the_users_whose_sockets_send_them() {
    with_fwbpf("owner", &["setpriv", "bash"], |lab, fwbpf| {
        load(
            fwbpf,
            "-A OUTPUT -p udp --dport 5000 -m owner --uid-owner 0 -j ACCEPT\n\
             -A OUTPUT -p udp --dport 5000 -m owner ! --uid-owner 0-1999 -j ACCEPT\n\
             -A OUTPUT -p udp --dport 5000 -j DROP\n\
             -A OUTPUT -p ICMP -m owner ! --socket-exists\n\
             -A OUTPUT -p ICMP -m owner --uid-owner 0\n",
        )?;
        for (version, far) in INTERNET.into_iter().enumerate() {
            let peer = udp(&lab.outside, ip(far), 5000)?;
            let own = udp(&lab.server, ip(["0.0.0.0", "::"][version]), 0)?;
            send(&own, ip(far), 5000, b"root's")?;
            ensure!(datagram(&peer)?.is_some(), "root's datagram is lost");
            for (user, arrives) in [("1000", false), ("2000", true)] {
                send_as(&lab.server, user, far)?;
                ensure!(
                    datagram(&peer)?.is_some() == arrives,
                    "a datagram of {user} to {far}: expected {arrives}"
                );
            }
            // What the kernel answers by itself is nobody's.
            let family = [Family::Ipv4, Family::Ipv6][version];
            let icmp = ["icmp", "ipv6-icmp"][version];
            let root = format!("-A OUTPUT -p {icmp} -m owner --uid-owner 0");
            let before = saved::count(&fwbpf.save(family)?, &root)?;
            ensure!(ping(&lab.outside, ip(SERVER[version]))?, "no answer");
            let after = saved::count(&fwbpf.save(family)?, &root)?;
            ensure!(before == after, "the kernel's answer is taken for root's");
            ensure!(ping(&lab.server, ip(OUTSIDE[version]))?, "no answer");
            let after = saved::count(&fwbpf.save(family)?, &root)?;
            ensure!(before != after, "root's ping is not taken for root's");
        }
        Ok(())
    });
}

#[test]
fn packets_belong_to_the_groups_whose_sockets_send_them() {
    with_fwbpf("groups", &["setpriv", "bash"], |lab, fwbpf| {
        load(
            fwbpf,
            "-A OUTPUT -p udp --dport 5000 -m owner --gid-owner 2000 -j ACCEPT\n\
             -A OUTPUT -p udp --dport 5000 -m owner --uid-owner 2001 ! --gid-owner 0-1999 -j ACCEPT\n\
             -A OUTPUT -p udp --dport 5000 -j DROP\n",
        )?;
        for far in INTERNET {
            let peer = udp(&lab.outside, ip(far), 5000)?;
            for (user, group, arrives) in [
                ("1000", "1000", false),
                ("1000", "2000", true),
                ("2001", "1000", false),
                ("2001", "2002", true),
            ] {
                send_as_member(&lab.server, (user, group), far)?;
                ensure!(
                    datagram(&peer)?.is_some() == arrives,
                    "a datagram of {user} in group {group} to {far}: expected {arrives}"
                );
            }
        }
        Ok(())
    });
}

fn send_as(server: &Namespace, user: &str, to: &str) -> Result<()> {
    send_as_member(server, (user, "0"), to)
}

fn send_as_member(server: &Namespace, (user, group): (&str, &str), to: &str) -> Result<()> {
    let script = format!("echo hello > /dev/udp/{to}/5000");
    let mut command = server.command("setpriv");
    command.args(["--reuid", user, "--regid", group, "--clear-groups"]);
    command.args(["bash", "-c", &script]);
    run(&mut command).map(drop)
}

#[test]
fn what_is_forwarded_is_known_by_its_senders_link_address() {
    with_fwbpf("mac", &["ping"], |lab, fwbpf| {
        load(
            fwbpf,
            ":FORWARD DROP\n\
             -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
             -A FORWARD -i docker0 -m mac --mac-source 02:00:00:00:02:02 -j ACCEPT\n",
        )?;
        for far in INTERNET {
            ensure!(ping(&lab.container1, ip(far))?, "container 1 to {far}");
            ensure!(!ping(&lab.container2, ip(far))?, "container 2 to {far}");
        }
        Ok(())
    });
}

/// Packets have ports where bridges hand over the frames that they only switch, and nowhere else
/// (`e2e_bridge.rs` has the rest).
#[test]
fn packets_have_ports_where_bridges_hand_them_over() {
    with_fwbpf("ports", &["sysctl"], |lab, fwbpf| {
        let set = |value: &str| {
            let mut command = lab.server.command("sysctl");
            run(command.args(["-w", &format!("net.bridge.bridge-nf-call-iptables={value}")]))
        };
        if set("1").is_err() {
            eprintln!("skipped: this kernel has no br_netfilter");
            return Ok(());
        }
        let rules = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
            -A FORWARD -m physdev --physdev-is-bridged -j DROP\n\
            -A FORWARD -m physdev ! --physdev-is-bridged\nCOMMIT\n";
        for (value, switched) in [("1", false), ("0", true)] {
            set(value)?;
            fwbpf.load(&[(Family::Ipv4, rules)])?;
            ensure!(
                ping(&lab.container1, ip(CONTAINER2[0]))? == switched,
                "switched with {value}, it should {switched}"
            );
            ensure!(
                ping(&lab.container1, ip(INTERNET[0]))?,
                "a routed packet is switched"
            );
            let save = fwbpf.save(Family::Ipv4)?;
            let rule = "-A FORWARD -m physdev ! --physdev-is-bridged";
            ensure!(saved::count(&save, rule)? != (0, 0), "it was not asked");
        }
        Ok(())
    });
}

/// Rules that tell apart what IPsec has to do with are good where it has to do with nothing.
#[test]
fn without_ipsec_no_packet_has_to_do_with_it() {
    with_fwbpf("ipsec", &["ip"], |lab, fwbpf| {
        let rules = "-A FORWARD -m policy --dir in --pol none -m policy --dir out --pol none -j ACCEPT\n\
            -A FORWARD -j DROP\n";
        load(fwbpf, rules)?;
        for far in INTERNET {
            ensure!(ping(&lab.container1, ip(far))?, "it is not forwarded");
        }
        let add = "xfrm policy add src 10.8.0.0/16 dst 10.9.0.0/16 dir out tmpl src 192.0.2.1 dst 192.0.2.2 \
            proto esp mode tunnel";
        run(lab.server.command("ip").args(add.split_whitespace()))?;
        let status = fwbpf.text(&["status"])?;
        ensure!(status.contains("IPsec is in use"), "{status}");
        let refused = load(fwbpf, rules).err().map(|error| format!("{error:#}"));
        let refused = refused.context("it is loaded")?;
        ensure!(refused.contains(":2: `-m policy --pol none`"), "{refused}");
        run(lab.server.command("ip").args(["xfrm", "policy", "flush"]))?;
        load(fwbpf, rules)
    });
}

#[test]
fn chances_are_what_they_are_said_to_be() {
    with_fwbpf("chances", &[], |lab, fwbpf| {
        const RULE: &str = "-A INPUT -p udp -m udp --dport 5000 -m statistic --mode random \
             --probability 0.25000000000";
        load(fwbpf, &format!("{RULE}\n"))?;
        let own = udp(&lab.outside, ip(OUTSIDE[0]), 0)?;
        for _ in 0..2_000 {
            send(&own, ip(SERVER[0]), 5000, b"x")?;
        }
        let (packets, _) =
            saved::count(&fwbpf.save(Family::Ipv4)?, RULE).context("the rule is not there")?;
        // Seven standard deviations around 500.
        ensure!((365..=635).contains(&packets), "{packets} of 2000");
        Ok(())
    });
}
