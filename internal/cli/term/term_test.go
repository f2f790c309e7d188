package term

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-runewidth"
)

func plainIO(out *bytes.Buffer) IO {
	return IO{In: strings.NewReader(""), Out: out, Err: out, Getenv: func(string) string { return "" }}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		-5: "0 B", 0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB",
		1 << 30: "1.0 GiB", 5 << 40: "5.0 TiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	if got := Rate(25 << 20); got != "25.0 MiB/s" {
		t.Errorf("Rate: %q", got)
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-1: "--", 0: "0s", 400 * time.Millisecond: "0s", 59*time.Second + 600*time.Millisecond: "1m00s",
		3*time.Minute + 7*time.Second: "3m07s", time.Hour + 2*time.Minute: "1h02m", 50 * time.Hour: "2d02h",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%d) = %q, want %q", d, got, want)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain 日本": "plain 日本", "a\x1b[2Jb": "a�[2Jb", "a\nb\tc": "a b c", "\u009b31m": "�31m", "x\u202ey": "x�y", "a\x9b2Jb": "a�2Jb", "\x7f": "�",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestBadges(t *testing.T) {
	var out bytes.Buffer
	io := plainIO(&out)
	io.Success("Accepted Jobs: %d", 1)
	io.Info("- Job ID: %s", "x")
	io.Warn("\x1b[2J")
	io.Heading("Jobs")
	want := " SUCCESS  Accepted Jobs: 1\n INFO     - Job ID: x\n WARNING  �[2J\n# Jobs\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// TestAlignment: all lines of a table and of a box are equally wide on a
// terminal, whatever is in them.
func TestAlignment(t *testing.T) {
	for name, draw := range map[string]func(IO){
		"table": func(io IO) {
			io.Table([]string{"Path", "Power"}, [][]string{{"/DC0/vm/国際/日本語サーバー", "off"}, {"x\x1b[2J"}, {strings.Repeat("long ", 30), "on"}}, 40)
		},
		"box":       func(io IO) { io.Box("Connection Info", "vCenter: 日本", "User: x") },
		"empty box": func(io IO) { io.Box("日本 with a title longer than the lines", "x") },
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			draw(plainIO(&out))
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			for _, l := range lines {
				if runewidth.StringWidth(l) != runewidth.StringWidth(lines[0]) {
					t.Errorf("not aligned:\n%s", out.String())
					break
				}
			}
			if strings.Contains(out.String(), "\x1b") {
				t.Errorf("an escape in %q", out.String())
			}
		})
	}
}

func TestPlainBanner(t *testing.T) {
	var out bytes.Buffer
	plainIO(&out).Banner("hyper2kvm", "a tool")
	if got := out.String(); got != "# hyper2kvm: a tool\n" {
		t.Errorf("%q", got)
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := plainIO(&out).JSON(map[string]string{"a": "<\u009b\u202e\x7f>"}); err != nil {
		t.Fatal(err)
	}
	if want := "{\n  \"a\": \"<\\u009b\\u202e\\u007f>\"\n}\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	if err := plainIO(&out).JSON(func() {}); err == nil {
		t.Error("no error for what has no JSON")
	}
}

type fullDisk struct{ err error }

func (f fullDisk) Write([]byte) (int, error) { return 0, f.err }

func TestChecked(t *testing.T) {
	full := errors.New("no space left")
	io, written := IO{Out: fullDisk{full}, Getenv: func(string) string { return "" }}.Checked()
	if err := written(); err != nil {
		t.Error(err)
	}
	io.Success("done")
	if err := written(); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

func TestShortenMiddle(t *testing.T) {
	for _, tc := range []struct {
		in    string
		width int
	}{{"short", 10}, {"a-very-long-name-of-a-vm-disk-0.vmdk", 20}, {"日本語サーバー日本語サーバー-disk-1.vmdk", 17}, {"日本語サーバー", 5}} {
		got := shortenMiddle(tc.in, tc.width)
		if runewidth.StringWidth(got) > tc.width {
			t.Errorf("%q has more than %d columns", got, tc.width)
		}
		if strings.HasSuffix(tc.in, "vmdk") && !strings.HasSuffix(got, ".vmdk") {
			t.Errorf("%q lost its end", got)
		}
	}
	if got := shortenMiddle("  db01-disk-0.qcow2", 10); got != "  d…disk-0" {
		t.Errorf("got %q", got)
	}
}

func TestWrap(t *testing.T) {
	for text, want := range map[string][]string{
		"":                           {""},
		"short":                      {"short"},
		"one two three":              {"one two", "three"},
		"a /very/long/path/name end": {"a", "/very/long/path/name", "end"},
		"日本語 日本語":                    {"日本語", "日本語"},
	} {
		if got := wrap(text, 8); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestTableFits: columns give way until the table fits, the widest first; paths
// lose their beginning.
func TestTableFits(t *testing.T) {
	for in, want := range map[string]string{
		"/DC0/vm/a": "/DC0/vm/a", "/DC0/vm/folder/web": "…folder/web", "/DC0/vm/文件夹数据库": "…件夹数据库", "/DC0/vm/文件夹数据库x": "… 夹数据库x",
		"a long sentence": "a long sen…",
	} {
		if got := shortenCell(in, 11); got != want || runewidth.StringWidth(got) > 11 {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	head, rows := []string{"ID", "Path", "Status"}, [][]string{{"12345678", "/DC0/vm/数据库/データベース", "exporting (12.5%)"}, {"1", "x", "y"}}
	for _, columns := range []int{200, 44, 34, 10} {
		var out bytes.Buffer
		io := plainIO(&out)
		io.Columns = columns
		io.Table(head, rows)
		most := max(columns, 3*(minColumn+3)+1)
		for line := range strings.Lines(out.String()) {
			if w := runewidth.StringWidth(strings.TrimSuffix(line, "\n")); w > most {
				t.Errorf("%d of %d columns: %s", w, columns, line)
			}
		}
		if out.Reset(); columns == 44 {
			io.Table(head, rows, Whole, 0, Whole)
			if text := out.String(); !strings.Contains(text, "│ exporting (12.5%) │") || !strings.Contains(text, "│ 12345678 │") {
				t.Errorf("what is to be whole is not:\n%s", text)
			}
			out.Reset()
			io.Table(head, rows)
		}
		if columns == 44 && !strings.Contains(out.String(), "│ 12345678 │ …") {
			t.Error(out.String())
		}
	}
}
