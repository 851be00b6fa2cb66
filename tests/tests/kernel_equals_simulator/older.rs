//! What older and newer kernels ask of the programs and the running one does not, found in the object
//! itself: a violation would show in a virtual machine only (`cargo xtask vmtest`).
//!
//! * Kernels before 6.8 round the stack of every function up to 32 bytes before they add up the
//!   chain of calls, and refuse more than 512 bytes (`check_max_stack_depth`, kernel/bpf/verifier.c).
//! * The kernel 6.1 takes memory that a global function got as an argument neither for a map's key nor
//!   for its value (`map_key_value_types`, ibid.). Memory that was looked up in a map, or is on
//!   the function's own stack, can be both.
//! * Linux 7.2 looks on the stack for what BTF calls a sixth argument, even if it is a value of no size
//!   and takes no register.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

use crate::programs::{Linked, Parameter};

/// `MAX_BPF_STACK`, and what older kernels round to.
const STACK: u32 = 512;
const ROUNDED_TO: u32 = 32;
/// `MAX_CALL_FRAMES`.
const FRAMES: usize = 8;

/// The arguments that there are registers for.
const ARGUMENTS: usize = 5;

/// Global functions whose arguments point to memory, beside the context. They only read and write it:
/// none of them, nor what they call, gives it to a map as a key or a value. Another function finds
/// the scratch space in its map (`fw-ebpf/src/stages.rs`), and gets numbers.
const TAKE_MEMORY: [&str; 6] = [
    "fwbpf_take_chunk",
    "fwbpf_advance_sctp",
    "fwbpf_advance_tcp",
    "fwbpf_forward",
    "fwbpf_unlink",
    "fwbpf_xdp_forward",
];

#[test]
fn chains_of_calls_fit_the_stack_of_older_kernels() -> Result<()> {
    let Some(object) = crate::object("chains_of_calls_fit_the_stack_of_older_kernels")? else {
        return Ok(());
    };
    for program in Linked::all(&object)? {
        let chain = deepest(&program)?;
        println!("{}:\n{}", program.name, chain.text);
        ensure!(
            chain.stack <= STACK && chain.frames <= FRAMES,
            "{}: a chain of {} calls needs {} bytes of stack; older kernels allow {FRAMES} and \
             {STACK}:\n{}",
            program.name,
            chain.frames,
            chain.stack,
            chain.text
        );
    }
    Ok(())
}

#[test]
fn global_functions_take_no_memory_that_becomes_a_key() -> Result<()> {
    let Some(object) = crate::object("global_functions_take_no_memory_that_becomes_a_key")? else {
        return Ok(());
    };
    for program in Linked::all(&object)? {
        for function in program.functions.iter().filter(|function| function.global) {
            let memory = function.parameters.contains(&Parameter::Memory);
            ensure!(
                !memory || TAKE_MEMORY.contains(&function.name.as_str()),
                "{} takes memory as an argument, which Linux 6.1 does not take for a key or value of \
                 a map. Find it in its map again, or on the function's own stack; if it is only read \
                 and written, add the function to TAKE_MEMORY",
                function.name
            );
        }
    }
    Ok(())
}

#[test]
fn no_function_has_a_sixth_argument() -> Result<()> {
    let Some(object) = crate::object("no_function_has_a_sixth_argument")? else {
        return Ok(());
    };
    for program in Linked::all(&object)? {
        for function in &program.functions {
            let count = function.parameters.len();
            ensure!(
                count <= ARGUMENTS,
                "{} has {count} arguments, values of no size counted; Linux 7.2 expects those after \
                 {ARGUMENTS} on the stack. Put two into one, or into the scratch space",
                function.name
            );
        }
    }
    Ok(())
}

/// The deepest chain of calls.
struct Chain {
    stack: u32,
    frames: usize,
    text: String,
}

fn deepest(program: &Linked) -> Result<Chain> {
    let mut by_stack = Vec::new();
    let mut frames = 0;
    walk(program, &mut vec![0], &mut by_stack, &mut frames)?;
    let mut text = String::new();
    let mut stack = 0;
    for number in by_stack {
        let function = &program.functions[number];
        stack += rounded(function.stack);
        writeln!(
            text,
            "  {stack:>4}  {:>4}  {}",
            function.stack, function.name
        )?;
    }
    Ok(Chain {
        stack,
        frames,
        text,
    })
}

fn walk(
    program: &Linked,
    path: &mut Vec<usize>,
    deepest: &mut Vec<usize>,
    frames: &mut usize,
) -> Result<()> {
    let depth = |path: &[usize]| -> u32 {
        path.iter()
            .map(|number| rounded(program.functions[*number].stack))
            .sum()
    };
    ensure!(path.len() <= 32, "{} calls itself", program.name);
    *frames = path.len().max(*frames);
    if depth(path) > depth(deepest) {
        deepest.clone_from(path);
    }
    let last = *path.last().context("the path begins with the program")?;
    for callee in &program.functions[last].calls {
        path.push(*callee);
        walk(program, path, deepest, frames)?;
        path.pop();
    }
    Ok(())
}

fn rounded(stack: u32) -> u32 {
    stack.max(1).next_multiple_of(ROUNDED_TO)
}
