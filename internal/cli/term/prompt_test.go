package term

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mattn/go-runewidth"
)

func TestParseKey(t *testing.T) {
	for _, tc := range []struct {
		in    string
		quiet bool
		key   key
		n     int
	}{
		{"", false, 0, 0},
		{"a", false, 'a', 1},
		{"日", false, '日', 3},
		{"日"[:2], false, 0, 0},
		{"日"[:2], true, keyUnknown, 1},
		{"\xff", true, keyUnknown, 1},
		{"\r", false, keyEnter, 1},
		{"\x03", false, keyCtrlC, 1},
		{"\x1b", false, 0, 0},
		{"\x1b", true, keyEscape, 1},
		{"\x1b[", false, 0, 0},
		{"\x1b[", true, keyUnknown, 2},
		{"\x1b[Ax", false, keyUp, 3},
		{"\x1bOB", false, keyDown, 3},
		{"\x1b[5~", false, keyPageUp, 4},
		{"\x1b[1;5C", false, keyUnknown, 6},
		{"\x1bf", false, keyUnknown, 2},
	} {
		if k, n := parseKey([]byte(tc.in), tc.quiet); k != tc.key && tc.n > 0 || n != tc.n {
			t.Errorf("%q, quiet %v: key %d of %d bytes, want %d of %d", tc.in, tc.quiet, k, n, tc.key, tc.n)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte("\x1b[1;5C"))
	f.Add([]byte("日\x1b"))
	f.Fuzz(func(t *testing.T, in []byte) {
		for len(in) > 0 {
			_, n := parseKey(in, true)
			if n < 1 || n > len(in) {
				t.Fatalf("%d bytes of %q", n, in)
			}
			in = in[n:]
		}
	})
}

func TestEdit(t *testing.T) {
	for _, tc := range []struct {
		text string
		key  key
		want string
	}{
		{"ab", 'c', "abc"}, {"ab", keyBackspace, "a"}, {"", keyBackspace, ""}, {"ab", keyCtrlU, ""},
		{"/a/bcd", keyCtrlW, "/a/"}, {"one two  ", keyCtrlW, "one "}, {"", keyCtrlW, ""},
		{"a", keyUp, "a"}, {"a", 0x07, "a"}, {"a", '\u202e', "a"}, {"a", '日', "a日"},
	} {
		if got := string(edit([]rune(tc.text), tc.key)); got != tc.want {
			t.Errorf("%q and %d: %q, want %q", tc.text, tc.key, got, tc.want)
		}
	}
}

func TestPicker(t *testing.T) {
	l := List{Question: "VMs", Head: []string{"Path", "Power"}, Hint: "words",
		Match: func(word string) (func(int) bool, bool) {
			return func(row int) bool { return row == 3 }, word == ":last"
		},
		Sum: func(rows []int) string { return fmt.Sprint(rows) }, Detail: func(context.Context, int) ([]string, error) { return nil, nil }}
	for _, n := range []string{"/DC0/vm/Prod/web01", "/DC0/vm/Prod/db01", "/DC0/vm/Test/web01", "/DC0/vm/国際/サーバー\x1b"} {
		l.Rows = append(l.Rows, []string{n, "off"})
	}
	p := newPicker(l)
	keys := func(s string) {
		for _, r := range s {
			p.press(r)
		}
	}
	keys("WEB prod")
	if !slices.Equal(p.found, []int{0}) {
		t.Errorf("found %v", p.found)
	}
	keys("\t\x15web\t") // marks stay while the filter changes; the first of web is unmarked
	if len(p.marked) != 0 {
		t.Errorf("marked %v", p.marked)
	}
	p.press(keyDown)
	p.press(keyDown)
	if p.cursor != 1 || !p.accept() || !slices.Equal(p.chosen(), []int{2}) {
		t.Errorf("cursor %d, chosen %v", p.cursor, p.chosen())
	}
	if lines := p.lines(80, 24, false); !strings.HasSuffix(lines[len(lines)-1], "1 marked: [2]") {
		t.Errorf("%q", lines)
	}
	keys("\x15:last OFF")
	if !slices.Equal(p.found, []int{3}) {
		t.Errorf("found %v", p.found)
	}
	keys("nothing of that name")
	p.press(keyTab)
	p.press(keyPageDown)
	p.press(keyEnd)
	p.press(keyUp)
	p.lines(80, 24, false)
	p.marked = map[int]bool{}
	if p.accept() {
		t.Error("it accepts nothing")
	}
	p.press(keyEscape)
	p.press(keyEnd)
	if len(p.found) != 4 || p.cursor != 3 {
		t.Errorf("found %v, cursor %d", p.found, p.cursor)
	}
	for _, size := range [][2]int{{80, 24}, {30, 5}, {40, 2}} {
		for _, l := range p.lines(size[0], size[1], false)[2:] {
			if strings.Contains(l, "\x1b") {
				t.Errorf("an escape in %q", l)
			}
			if strings.HasPrefix(l, ">") && runewidth.StringWidth(l) >= size[0] {
				t.Errorf("%q does not fit", l)
			}
		}
	}
}

func TestNumbers(t *testing.T) {
	for in, want := range map[string][]int{"1": {1}, "1 3-5": {1, 3, 4, 5}, "2,4": {2, 4}} {
		if got, ok := numbers(in, 5); !ok || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "0", "6", "web", "1 web", "3-1", "-", "1-99999999999999999999"} {
		if got, ok := numbers(in, 5); ok {
			t.Errorf("%q: %v", in, got)
		}
	}
}

// BenchmarkKeystroke is what one key costs in a list of 5,000: filter and
// screen. More than 16 ms would be seen.
func BenchmarkKeystroke(b *testing.B) {
	l := List{Question: "VMs", Head: []string{"Name", "Folder", "Power", "Guest OS", "Size"}}
	for i := range 5000 {
		l.Rows = append(l.Rows, []string{fmt.Sprintf("server-%04d", i), fmt.Sprintf("/DC%d/vm/Production/Team %d", i%3, i%40), "off", "Debian GNU/Linux 12 (64-bit)", "12.0 GiB"})
	}
	p := newPicker(l)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			p.press('7')
		} else {
			p.press(keyBackspace)
		}
		p.lines(200, 50, true)
	}
}
