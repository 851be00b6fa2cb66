//! Real hosts at both ends, for what only real sockets can show.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use fw_user::policy::model::Family;

use super::Settings;
use super::contender::{Contender, Loaded};
use super::floor::Tracking;
use super::lab::{Ends, HOST, PathLab};
use super::policies;
use super::report::{Outcome, Row, Spread};

/// The administrator, whom the guide lets in whatever he sends; at wan.
pub const ADMIN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// Who is measured with real sockets.
pub const CONTENDERS: [Contender; 6] = [
    Contender::NoFirewall,
    Contender::IptablesLegacy,
    Contender::IptablesNft,
    Contender::Nft,
    Contender::FwbpfXdp,
    Contender::FwbpfTcx,
];

/// A contender between real hosts.
pub struct RealArena {
    /// Who.
    pub contender: Contender,
    /// The firewall.
    pub loaded: Loaded,
    floor: Option<Tracking>,
    /// The hosts. Last, so that they go last.
    pub lab: PathLab,
}

impl RealArena {
    /// Makes the hosts and loads the guide.
    pub fn new(case: &str, contender: Contender, object: &[u8]) -> Result<Self> {
        let lab = PathLab::new(&format!("{case}-{}", contender.name()), Ends::Real)?;
        let loaded = Loaded::new(contender, Arc::clone(&lab.host))?.with_exact_fast_path();
        loaded.load(&policies::guide())?;
        let floor = (contender == Contender::FloorTrack)
            .then(|| Tracking::attach(&lab.host, object))
            .transpose()?;
        Ok(Self {
            contender,
            loaded,
            floor,
            lab,
        })
    }

    /// How many packets of established connections the firewall has counted, if it counts any.
    pub fn seen(&self) -> Result<Option<u64>> {
        match &self.floor {
            Some(floor) => floor.count().map(Some),
            None => self.loaded.established(Family::Ipv4),
        }
    }

    /// Makes sure that the firewall has seen what went on since `before`.
    pub fn ensure_seen(&self, before: Option<u64>) -> Result<()> {
        let after = self.seen()?;
        if let (Some(before), Some(after)) = (before, after) {
            anyhow::ensure!(
                after > before,
                "the rule for established flows has counted nothing: the traffic went elsewhere"
            );
        }
        Ok(())
    }
}

/// A port of the host that the guide opens.
pub fn open_port(port: u16) -> SocketAddr {
    SocketAddr::new(HOST, port)
}

/// One arena for each of the contenders.
pub fn arenas(
    settings: &Settings,
    case: &str,
    contenders: &[Contender],
) -> Result<Vec<(Contender, Result<RealArena>)>> {
    let mut arenas = Vec::new();
    for contender in contenders {
        settings.check()?;
        settings.step(&format!("setting up {}", contender.name()));
        let arena = settings
            .ask_for(*contender)
            .and_then(|()| RealArena::new(case, *contender, &settings.object));
        arenas.push((*contender, arena));
    }
    Ok(arenas)
}

/// Every contender in turn, again and again; `run` gives `METRICS` numbers. Returns the rows of
/// one table for each of them. A first round, which warms up, does not count.
pub fn alternate<A, const METRICS: usize>(
    settings: &Settings,
    title: &str,
    arenas: &mut [(Contender, Result<A>)],
    mut run: impl FnMut(&mut A) -> Result<[f64; METRICS]>,
) -> Result<[Vec<Row>; METRICS]> {
    let mut found: Vec<Result<Vec<[f64; METRICS]>, String>> = arenas
        .iter()
        .map(|(_, arena)| match arena {
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(format!("{error:#}")),
        })
        .collect();
    for round in 0..=settings.rounds {
        for ((contender, arena), found) in arenas.iter_mut().zip(&mut found) {
            settings.check()?;
            let (Ok(arena), Ok(runs)) = (arena, &mut *found) else {
                continue;
            };
            settings.step(&format!(
                "{title}: round {round} of {}, {}",
                settings.rounds,
                contender.name()
            ));
            match run(arena) {
                Ok(numbers) if round > 0 => runs.push(numbers),
                Ok(_) => {}
                Err(error) => *found = Err(format!("{error:#}")),
            }
        }
    }
    let mut tables = [const { Vec::new() }; METRICS];
    for ((contender, _), found) in arenas.iter().zip(found) {
        for (metric, rows) in tables.iter_mut().enumerate() {
            let outcome = match &found {
                Err(why) => Outcome::Failed(why.clone()),
                Ok(runs) => {
                    let numbers = runs.iter().map(|run| run[metric]).collect();
                    Outcome::Measured(Spread::of(numbers).context("at least one round")?)
                }
            };
            rows.push(Row {
                contender: *contender,
                label: None,
                outcome,
                remark: None,
            });
        }
    }
    Ok(tables)
}
