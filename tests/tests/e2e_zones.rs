//! Zones: two networks of the same addresses behind one server, under iptables and under fwbpf.

use anyhow::ensure;
use fw_user::policy::model::Family;
use fwbpf_tests::guide::under_both;
use fwbpf_tests::lab::saved;
use fwbpf_tests::tenants::{RULES, Tenants};

#[test]
fn networks_of_the_same_addresses_have_their_zones() {
    under_both("zones", |guide| {
        let tenants = Tenants::new(guide)?;
        guide.load(RULES, RULES)?;
        let saved = guide.firewall.save(Family::Ipv4)?;
        ensure!(saved::rules_only(&saved).contains("-A PREROUTING -i ten2 -j CT --zone 40002\n"));
        tenants.talk(guide)
    });
}
