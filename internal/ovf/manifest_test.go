package ovf

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

var (
	sum1   = strings.Repeat("0a", 20)
	sum256 = strings.Repeat("1b", 32)
	sum512 = strings.Repeat("2c", 64)
)

func TestManifestRoundTrip(t *testing.T) {
	t.Parallel()
	entries := []Entry{
		{SHA256, "web.ovf", sum256},
		{SHA256, "web (copy) = 1.vmdk", sum256},
		{SHA1, "вэб-disk-0.vmdk", sum1},
		{SHA512, " ) = (", sum512},
		{SHA256, "...", sum256},
	}
	var b bytes.Buffer
	if err := WriteManifest(&b, entries); err != nil {
		t.Fatal(err)
	}
	if want := "SHA256(web.ovf)= " + sum256 + "\n"; !strings.HasPrefix(b.String(), want) {
		t.Errorf("manifest begins %q, want %q", b.String()[:len(want)], want)
	}
	got, err := ParseManifest(iotest.OneByteReader(&b))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, entries) {
		t.Errorf("got %q, want %q", got, entries)
	}
}

func TestParseManifest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text string
		want []Entry
		err  string
	}{
		"ovftool":       {"SHA256(a.ovf)= " + sum256 + "\n", []Entry{{SHA256, "a.ovf", sum256}}, ""},
		"openssl, CRLF": {"SHA1 (a.ovf) = " + strings.ToUpper(sum1) + "\r\n\r\n", []Entry{{SHA1, "a.ovf", sum1}}, ""},
		"no spaces":     {"SHA512(a)=" + sum512, []Entry{{SHA512, "a", sum512}}, ""},
		"indented":      {"  \tSHA1(a)=\t" + sum1 + "  ", []Entry{{SHA1, "a", sum1}}, ""},
		"empty":         {"", nil, ""},
		"blank":         {"\n \n", nil, ""},
		"algorithm":     {"MD5(a)= 00", nil, "line 1: unknown algorithm \"MD5\""},
		"lower case":    {"sha1(a)= " + sum1, nil, "unknown algorithm"},
		"no form":       {"\nhello", nil, "line 2: want the form"},
		"no name end":   {"SHA1(a= " + sum1, nil, "want the form"},
		"no digest":     {"SHA1(a)", nil, "want the form"},
		"empty name":    {"SHA1()= " + sum1, nil, "name is empty"},
		"path":          {"SHA1(a/b)= " + sum1, nil, "has a path"},
		"windows path":  {`SHA1(a\b)= ` + sum1, nil, "has a path"},
		"dots":          {"SHA1(..)= " + sum1, nil, `name is ".."`},
		"NUL":           {"SHA1(a\x00)= " + sum1, nil, "control characters"},
		"not UTF-8":     {"SHA1(a\xff)= " + sum1, nil, "not valid UTF-8"},
		"short digest":  {"SHA1(a)= " + sum1[1:], nil, "39 digits, want 40"},
		"long digest":   {"SHA1(a)= " + sum256, nil, "64 digits, want 40"},
		"not hex":       {"SHA1(a)= " + strings.Repeat("x", 40), nil, "not lower-case hexadecimal"},
		"twice":         {"SHA1(a)= " + sum1 + "\nSHA256(a)= " + sum256, nil, `line 2: second digest for "a"`},
		"long line":     {"SHA1(" + strings.Repeat("a", 5000) + ")= " + sum1, nil, "line 1 is too long"},
		"long name":     {"SHA1(" + strings.Repeat("a", 1025) + ")= " + sum1, nil, "1025 bytes"},
		"large":         {strings.Repeat("\n", MaxManifest+1), nil, "more than 1048576 bytes"},
		"largest":       {strings.Repeat("\n", MaxManifest), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseManifest(strings.NewReader(c.text))
			if c.err == "" && (err != nil || !slices.Equal(got, c.want)) {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %q and error %v, want one with %q", got, err, c.err)
			}
		})
	}
	boom := errors.New("boom")
	if _, err := ParseManifest(iotest.ErrReader(boom)); !errors.Is(err, boom) {
		t.Errorf("got error %v, want %v", err, boom)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWriteManifestRefuses(t *testing.T) {
	t.Parallel()
	good := Entry{SHA256, "a", sum256}
	for name, entries := range map[string][]Entry{
		"algorithm": {{"MD5", "a", sum256}},
		"path":      {{SHA256, "../a", sum256}},
		"newline":   {{SHA256, "a\nb", sum256}},
		"digest":    {{SHA256, "a", sum1}},
		"upper":     {{SHA256, "a", strings.ToUpper(sum256)}},
		"twice":     {good, good},
	} {
		var b bytes.Buffer
		if err := WriteManifest(&b, entries); err == nil || b.Len() > 0 {
			t.Errorf("%s: got error %v and %d bytes", name, err, b.Len())
		}
	}
	if err := WriteManifest(brokenWriter{}, []Entry{good}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got error %v, want %v", err, io.ErrClosedPipe)
	}
}

// FuzzParseManifest wants what was read to be written and read again the same.
func FuzzParseManifest(f *testing.F) {
	f.Add("SHA256(a.ovf)= " + sum256 + "\r\nSHA1 (b (c) = d.vmdk) = " + sum1)
	f.Add("SHA512()= " + sum512)
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := ParseManifest(strings.NewReader(text))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := WriteManifest(&b, entries); err != nil {
			t.Fatalf("read but not written: %v", err)
		}
		again, err := ParseManifest(&b)
		if err != nil || !slices.Equal(again, entries) {
			t.Fatalf("got %q, %v, want %q", again, err, entries)
		}
	})
}
