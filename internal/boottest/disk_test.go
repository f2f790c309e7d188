package boottest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestBootDisk boots from a file, without anything of this project between.
func TestBootDisk(t *testing.T) {
	long := strings.Repeat("a long text, ", 79)[:maxText-2] + "\r\n"
	for _, text := range []string{"!", "hyper2kvm boots: raw file\r\n", long} {
		file := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(file, BootDisk(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := start(t.Context(), bare(file), text)
		if err != nil {
			t.Fatal(err)
		}
		if out != text {
			t.Errorf("the guest wrote %q, want %q", out, text)
		}
	}
}

// TestBootDiskCut: the guest of a disk that ends before the text says so.
func TestBootDiskCut(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, BootDisk("never")[:textOffset-sectorSize], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := start(t.Context(), bare(file), "never"); err == nil || !strings.Contains(err.Error(), errUnreadable.Error()) {
		t.Errorf("the guest wrote %q, error %v; want %v", out, err, errUnreadable)
	}
}

// bare is the smallest machine: one disk, one serial port.
func bare(file string) []string {
	return []string{
		"-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot", "-m", "16",
		"-drive", "format=raw,snapshot=on,file=" + file,
		"-chardev", "stdio,signal=off,id=serial0", "-device", "isa-serial,chardev=serial0",
	}
}

func TestBootDiskRefusesTexts(t *testing.T) {
	for _, text := range []string{"", strings.Repeat("x", maxText+1)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a text of %d bytes is taken", len(text))
				}
			}()
			BootDisk(text)
		}()
	}
}

// TestProgramFits: nothing of the boot sector lies over something else.
func TestProgramFits(t *testing.T) {
	parts := []struct {
		name     string
		at, size int
	}{
		{"program", loadedAt, len(program)},
		{"uart", uartAt, len(uart)},
		{"packet", packetAt, len(packet())},
		{"failed", failedAt, len(failedText)},
		{"partition table", loadedAt + 440, 70},
		{"mark", loadedAt + 510, 2},
		{"buffer", bufferAt, maxText},
	}
	for i := range parts[1:] {
		a, b := parts[i], parts[i+1]
		if a.at+a.size > b.at {
			t.Errorf("%s (%d bytes at %#x) runs into %s at %#x", a.name, a.size, a.at, b.name, b.at)
		}
	}
}
