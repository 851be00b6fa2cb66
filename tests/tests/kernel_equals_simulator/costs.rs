//! What each global function costs the verifier: how many instructions fewer it looks at if the function
//! does nothing.
//!
//! The kernel counts for whole programs only. So the programs are loaded once more for each function, which
//! returns at once there. What it alone calls is not looked at either (before Linux 6.8, all global
//! functions are).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use aya_obj::Object;
use aya_obj::generated::bpf_insn;

use crate::kernel::Kernel;
use crate::programs::Linked;

#[test]
fn costs_of_global_functions() -> Result<()> {
    if std::env::var_os("VERIFIER_COSTS").is_none() {
        eprintln!("SKIPPED costs_of_global_functions: it takes a minute (set VERIFIER_COSTS=1)");
        return Ok(());
    }
    let Some(object) = crate::object("costs_of_global_functions")? else {
        return Ok(());
    };
    let whole: BTreeMap<_, _> = Kernel::load(&object)?.verified()?.into_iter().collect();
    let mut costs: BTreeMap<&str, Vec<(u32, String)>> = BTreeMap::new();
    for name in global_functions(&object)? {
        let without = without(&object, &name)?;
        let rest = Kernel::load(&without).with_context(|| format!("load without {name}"))?;
        for (program, count) in rest.verified()? {
            let cost = whole[program].saturating_sub(count);
            if cost > 0 {
                let costs = costs.entry(program).or_default();
                costs.push((cost, name.clone()));
            }
        }
    }
    for (program, mut costs) in costs {
        println!("{program}: {} instructions verified", whole[program]);
        costs.sort_unstable_by(|one, other| other.cmp(one));
        for (cost, name) in costs {
            println!("{cost:>9}  {name}");
        }
    }
    Ok(())
}

fn global_functions(object: &[u8]) -> Result<Vec<String>> {
    let programs = Linked::all(object)?;
    let mut names: Vec<_> = programs
        .iter()
        .flat_map(|program| &program.functions[1..])
        .filter(|function| function.global)
        .map(|function| function.name.clone())
        .collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// The object with a function that begins with `r0 = 0; if r0 == 0 goto` its end: all instructions can be
/// reached, as the verifier wants, and it goes to none of them.
fn without(object: &[u8], name: &str) -> Result<Vec<u8>> {
    const BYTES: usize = 8;
    const EXIT: u8 = 0x95;
    const JUMP_EQUAL: u8 = 0x15;
    const SET: u8 = 0xb7;
    const LOAD_WIDE: u8 = 0x18;
    let parsed = Object::parse(object).context("parse the BPF object")?;
    let code = parsed
        .functions
        .values()
        .find(|function| function.name == name)
        .with_context(|| format!("the object has no code of {name}"))?;
    let code = &code.instructions;
    let end = code
        .iter()
        .position(|instruction| instruction.code == EXIT)
        .with_context(|| format!("{name} does not end"))?;
    ensure!(
        end > 1 && code[1].code != LOAD_WIDE && code[0].code != LOAD_WIDE,
        "{name} begins with what cannot be replaced"
    );
    let bytes: Vec<u8> = code.iter().flat_map(encode).collect();
    let places: Vec<_> = object
        .windows(bytes.len())
        .enumerate()
        .filter(|(_, window)| *window == bytes)
        .map(|(place, _)| place)
        .collect();
    ensure!(
        places.len() == 1,
        "{name} is {} times in the object",
        places.len()
    );
    let mut changed = object.to_vec();
    let mut head = [0; 2 * BYTES];
    head[0] = SET;
    head[BYTES] = JUMP_EQUAL;
    head[BYTES + 2..BYTES + 4].copy_from_slice(&i16::try_from(end - 2)?.to_le_bytes());
    changed[places[0]..places[0] + head.len()].copy_from_slice(&head);
    Ok(changed)
}

fn encode(instruction: &bpf_insn) -> Vec<u8> {
    let mut bytes = vec![
        instruction.code,
        instruction.src_reg() << 4 | instruction.dst_reg(),
    ];
    bytes.extend_from_slice(&instruction.off.to_le_bytes());
    bytes.extend_from_slice(&instruction.imm.to_le_bytes());
    bytes
}
