//! What the targets of the nat table translate to, as the datapath reads it.

use fw_common::abi::blob::{Translation, TranslationFields};

use crate::addr;
use crate::policy::model::{self, PortRange, Redirect, Target};

/// The cell of a target that has one.
pub(super) fn fields(target: &Target) -> Option<TranslationFields> {
    match target {
        Target::Dnat(translation) | Target::Snat(translation) => Some(of(translation)),
        Target::Redirect(Redirect { ports, random }) => {
            let mut fields = TranslationFields {
                flags: flag(Translation::RANDOM, *random),
                ..TranslationFields::default()
            };
            set_ports(&mut fields, *ports);
            Some(fields)
        }
        Target::Netmap(network) => {
            let (first, last) = addr::masked(network.address, network.mask);
            Some(TranslationFields {
                flags: Translation::ADDRESSES,
                first,
                last,
                ..TranslationFields::default()
            })
        }
        Target::Continue
        | Target::Accept
        | Target::Drop
        | Target::Return
        | Target::Jump(_)
        | Target::Goto(_)
        | Target::Masquerade(_)
        | Target::Log(_)
        | Target::Nflog(_)
        | Target::Set(_)
        | Target::Reject(_)
        | Target::Change(_) => None,
    }
}

fn of(translation: &model::Translation) -> TranslationFields {
    let mut fields = TranslationFields {
        flags: flag(
            Translation::RANDOM,
            translation.random || translation.random_fully,
        ) | flag(Translation::PERSISTENT, translation.persistent),
        ..TranslationFields::default()
    };
    if let Some((first, last)) = translation.addresses {
        fields.flags |= Translation::ADDRESSES;
        fields.first = addr::to_abi(first);
        fields.last = addr::to_abi(last);
    }
    set_ports(&mut fields, translation.ports);
    if let Some(base) = translation.base_port {
        fields.flags |= Translation::OFFSET;
        fields.base_port = base;
    }
    fields
}

fn set_ports(fields: &mut TranslationFields, ports: Option<PortRange>) {
    if let Some(PortRange { first, last }) = ports {
        fields.flags |= Translation::PORTS;
        fields.ports = (first, last);
    }
}

const fn flag(bit: u32, set: bool) -> u32 {
    if set { bit } else { 0 }
}
