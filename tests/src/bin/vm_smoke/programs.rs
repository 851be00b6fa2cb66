//! What this kernel's verifier makes of each program, one by one.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use aya::EbpfLoader;
use aya::programs::{Program, ProgramError};

/// Where the object is in the virtual machine.
const OBJECT: &str = "/fwbpf.bpf.o";

/// Each program's name, and how many instructions were looked at until it was accepted, or why
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
