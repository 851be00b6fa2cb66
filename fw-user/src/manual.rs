//! The manual page, generated from the command line's definition.

use clap::Command;

/// Renders `fwbpf(8)`: the command and all of its subcommands on one page.
pub fn render(command: &Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    let mut command = command.clone();
    command.build();
    clap_mangen::Man::new(command.clone())
        .section("8")
        .render(&mut page)?;
    for subcommand in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        if subcommand.get_name() == "help" {
            continue;
        }
        let man = clap_mangen::Man::new(subcommand.clone());
        page.extend_from_slice(
            format!(".SH \"FWBPF {}\"\n", subcommand.get_name().to_uppercase()).as_bytes(),
        );
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        if subcommand.has_subcommands() {
            man.render_subcommands_section(&mut page)?;
        }
        man.render_extra_section(&mut page)?;
    }
    Ok(page)
}
