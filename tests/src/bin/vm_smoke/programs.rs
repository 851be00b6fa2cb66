//! What this kernel's verifier made of each program.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use aya::EbpfLoader;
use aya::programs::{Program, ProgramError, loaded_programs};

/// Where the object is in the virtual machine.
const OBJECT: &str = "/fwbpf.bpf.o";

/// The programs that `fwbpf load` loaded, and how many instructions the verifier looked at for
/// each. To verify them again would take an emulated processor as long as all the rest.
pub fn loaded() -> Result<Vec<(String, Result<Option<u32>>)>> {
    let mut outcomes = Vec::new();
    for program in loaded_programs() {
        let program = program.context("cannot list the programs of this kernel")?;
        let name = program.name_as_str().unwrap_or_default();
        if name.starts_with("fwbpf_") {
            outcomes.push((name.to_owned(), Ok(program.verified_instruction_count())));
        }
    }
    ensure!(!outcomes.is_empty(), "this kernel lists no program fwbpf_*");
    outcomes.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(outcomes)
}

/// Has the verifier look at the programs one by one: each one's name, and how many instructions were looked at until it was accepted, or why
/// it was not. (`FWBPF_OBJECT` names the object elsewhere.)
pub fn verify() -> Result<Vec<(String, Result<Option<u32>>)>> {
    let path = std::env::var_os("FWBPF_OBJECT").map_or_else(|| OBJECT.into(), PathBuf::from);
    let mut object = EbpfLoader::new()
        .load_file(&path)
        .with_context(|| format!("cannot create the maps of {}", path.display()))?;
    let mut outcomes: Vec<_> = object
        .programs_mut()
        .map(|(name, program)| (name.to_owned(), load(program)))
        .collect();
    outcomes.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(outcomes)
}

fn load(program: &mut Program) -> Result<Option<u32>> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load().and_then(|()| program.info()),
        Program::Xdp(program) => program.load().and_then(|()| program.info()),
        _ => bail!("it is of a type that vm_smoke does not know"),
    };
    match loaded {
        Ok(info) => Ok(info.verified_instruction_count()),
        Err(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(25)..].join("\n");
            Err(io_error).context(format!("the verifier's log ends with\n{end}\n"))
        }
        Err(error) => Err(error.into()),
    }
}
