package man

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/h2kvmctl"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/hyper2kvm"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/hyper2kvmd"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/config"
)

// Pages are the manual pages of the three binaries.
func Pages() []Page {
	io := term.IO{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &bytes.Buffer{}, Getenv: func(string) string { return "" }}
	return []Page{
		{hyper2kvm.Root(io), 1, [][2]string{{"hyper2kvm.json", "the receipt in an output folder: while it is there, the export is whole"}}, []string{"h2kvmctl(1)", "hyper2kvmd(8)"}},
		{h2kvmctl.Root(io), 1, nil, []string{"hyper2kvm(1)", "hyper2kvmd(8)"}},
		{hyper2kvmd.Root(io), 8, [][2]string{
			{config.DefaultFile, "the configuration, read if it exists"},
			{"/var/lib/hyper2kvm/jobs.db", "jobs, their events and logs"},
		}, []string{"h2kvmctl(1)", "hyper2kvm(1)", "systemd.exec(5)"}},
	}
}

// WriteAll writes all pages into a folder, which is made, as NAME.SECTION.
// Epoch is the time they are dated with, in seconds; empty is now.
func WriteAll(dir, epoch string) error {
	date := time.Now().UTC()
	if epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		date = time.Unix(seconds, 0).UTC()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range Pages() {
		var b bytes.Buffer
		if err := Write(&b, p, date.Format(time.DateOnly)); err != nil {
			return err
		}
		name := filepath.Join(dir, fmt.Sprintf("%s.%d", p.Command.Name, p.Section))
		if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
