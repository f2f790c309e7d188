// Package man writes the manual pages of the binaries from the definitions
// that parse their command lines, in man(7) roff.
package man

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
)

// Page is one manual page.
type Page struct {
	Command *cli.Command // root of the definition
	Section int
	Files   [][2]string // path and what it is
	SeeAlso []string    // other pages, as "name(section)"
}

// Write writes the page, dated with a day as YYYY-MM-DD.
func Write(w io.Writer, p Page, date string) error {
	d := &document{}
	root := p.Command
	d.line(`.\" Made from the definition of the command line.`)
	d.line(fmt.Sprintf(`.TH "%s" "%d" "%s" "hyper2kvm %s" "hyper2kvm"`, escape(strings.ToUpper(root.Name)), p.Section, date, escape(root.Version)))
	d.section("Name")
	d.text(fmt.Sprintf(`%s - %s`, root.Name, root.Usage))
	d.section("Synopsis")
	d.synopsis(root.Name, root)
	for _, c := range visible(root) {
		d.line(".br")
		d.synopsis(root.Name+" "+c.Name, c)
	}
	d.section("Description")
	d.paragraphs(root.Description)
	d.text("Flags may be written with one dash or two, before or after the arguments.")
	d.section("Options")
	d.flags(root)
	if commands := visible(root); len(commands) > 0 {
		d.section("Commands")
		for _, c := range commands {
			d.command(c.Name, c)
		}
	}
	d.section("Exit status")
	for _, row := range exit.Table() {
		d.item(fmt.Sprintf(`\fB%d\fR`, row.Code), row.Meaning)
	}
	if len(p.Files) > 0 {
		d.section("Files")
		for _, f := range p.Files {
			d.item(`\fI`+escape(f[0])+`\fR`, f[1])
		}
	}
	if len(p.SeeAlso) > 0 {
		d.section("See also")
		var refs []string
		for _, s := range p.SeeAlso {
			name, section, _ := strings.Cut(s, "(")
			refs = append(refs, `\fB`+escape(name)+`\fR(`+section)
		}
		d.line(strings.Join(refs, ", "))
	}
	_, err := io.WriteString(w, d.b.String())
	return err
}

// visible gives the commands that a person is told of.
func visible(c *cli.Command) (out []*cli.Command) {
	for _, sub := range c.Commands {
		if !sub.Hidden && sub.Name != "help" {
			out = append(out, sub)
		}
	}
	if c.EnableShellCompletion && c.ConfigureShellCompletionCommand != nil {
		// The library adds it when it runs.
		completion := &cli.Command{Name: "completion", UsageText: c.Name + " completion bash|zsh|fish"}
		c.ConfigureShellCompletionCommand(completion)
		out = append(out, completion)
	}
	return out
}

type document struct{ b strings.Builder }

func (d *document) line(s string) { d.b.WriteString(s + "\n") }

func (d *document) section(title string) { d.line(".SH " + strings.ToUpper(title)) }

// text writes one paragraph of plain words.
func (d *document) text(s string) { d.line(protect(escape(s))) }

// paragraphs writes lines of plain words; an empty line begins a paragraph.
func (d *document) paragraphs(s string) {
	for line := range strings.SplitSeq(strings.TrimSpace(s), "\n") {
		if line = strings.TrimSpace(line); line == "" {
			d.line(".PP")
			continue
		}
		d.text(line)
	}
	if s != "" {
		d.line(".PP")
	}
}

// item writes a term, which is roff already, and its explanation.
func (d *document) item(term, text string) {
	d.line(".TP")
	d.line(protect(term))
	d.text(text)
}

func (d *document) synopsis(name string, c *cli.Command) {
	usage := c.UsageText
	if usage == "" {
		usage = name
		if len(c.Flags) > 0 {
			usage += " [flags]"
		}
		switch {
		case c.ArgsUsage != "":
			usage += " " + c.ArgsUsage
		case len(visible(c)) > 0:
			usage += " [command]"
		}
	}
	for i, line := range strings.Split(strings.TrimSpace(usage), "\n") {
		if i > 0 {
			d.line(".br")
		}
		line = strings.TrimSpace(line)
		rest := strings.TrimPrefix(line, name)
		if rest == line {
			d.text(line)
			continue
		}
		d.line(`\fB` + escape(name) + `\fR` + escape(rest))
	}
}

func (d *document) command(name string, c *cli.Command) {
	d.line(".SS " + escape(name))
	if c.Usage != "" {
		d.text(strings.ToUpper(c.Usage[:1]) + c.Usage[1:] + ".")
	}
	if c.Description != "" {
		d.line(".PP")
		d.paragraphs(c.Description)
	}
	d.flags(c)
	for _, sub := range visible(c) {
		d.command(name+" "+sub.Name, sub)
	}
}

func (d *document) flags(c *cli.Command) {
	for _, f := range c.Flags {
		doc, ok := f.(cli.DocGenerationFlag)
		if v, hides := f.(cli.VisibleFlag); !ok || hides && !v.IsVisible() {
			continue
		}
		usage, value := doc.GetUsage(), ""
		// The part of the usage between backquotes is what the value is called.
		if before, rest, found := strings.Cut(usage, "`"); found {
			if inner, after, closed := strings.Cut(rest, "`"); closed {
				usage, value = before+inner+after, inner
			}
		}
		if value == "" && doc.TakesValue() {
			value = "VALUE"
		}
		var names []string
		for _, n := range f.Names() {
			names = append(names, `\fB\-`+escape(n)+`\fR`)
		}
		term := strings.Join(names, ", ")
		if value != "" {
			term += ` \fI` + escape(value) + `\fR`
		}
		d.item(term, usage)
	}
}

// escape makes roff of plain text.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "~", `\(ti`, "^", `\(ha`).Replace(s)
}

// protect keeps a line from being taken for a request.
func protect(s string) string {
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		return `\&` + s
	}
	return s
}
