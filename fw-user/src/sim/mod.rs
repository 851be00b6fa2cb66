//! The datapath on the host: `Packet` and `Tables` over plain collections.
