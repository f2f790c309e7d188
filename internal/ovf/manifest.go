package ovf

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Algorithm is a digest algorithm by the name manifests use.
type Algorithm string

// The algorithms of OVF manifests (DSP0243, section 5.1: SHA-1 in version 1,
// SHA-256 in version 2; ovftool knows SHA-512 as well).
const (
	SHA1   Algorithm = "SHA1"
	SHA256 Algorithm = "SHA256"
	SHA512 Algorithm = "SHA512"
)

// size is the length of a digest in bytes, 0 for an unknown algorithm.
func (a Algorithm) size() int {
	switch a {
	case SHA1:
		return 20
	case SHA256:
		return 32
	case SHA512:
		return 64
	}
	return 0
}

// Entry is one line of a manifest.
type Entry struct {
	Algorithm Algorithm
	// Name is the file's plain name: the manifest lies in the same folder.
	Name string
	// Digest is lower-case hexadecimal.
	Digest string
}

// Bounds of what ParseManifest and ParseDescriptor read, in bytes. Real
// manifests have some hundred bytes for each disk, real descriptors some ten
// thousand for each VM.
const (
	MaxManifest   = 1 << 20
	MaxDescriptor = 16 << 20
	maxName       = 1024
)

// WriteManifest writes entries, in their order, as ovftool does:
//
//	SHA256(name.ovf)= 0123…
//
// An entry that ParseManifest would refuse is an error, and nothing is
// written then.
func WriteManifest(w io.Writer, entries []Entry) error {
	var b strings.Builder
	seen := map[string]bool{}
	for i, e := range entries {
		if err := e.check(seen); err != nil {
			return fmt.Errorf("write manifest: entry %d: %w", i+1, err)
		}
		fmt.Fprintf(&b, "%s(%s)= %s\n", e.Algorithm, e.Name, e.Digest)
	}
	if b.Len() > MaxManifest {
		return fmt.Errorf("write manifest: it has %d bytes, at most %d are allowed", b.Len(), MaxManifest)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// ParseManifest reads a whole manifest of at most MaxManifest bytes. Spaces
// around the equals sign, blank lines and CRLF are accepted; an unknown
// algorithm, a digest of the wrong length, a name with a path in it and a
// second digest for the same file are not. The error names the line.
func ParseManifest(r io.Reader) ([]Entry, error) {
	limited := &io.LimitedReader{R: r, N: MaxManifest + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(make([]byte, 0, 4096), maxName+1024)
	var entries []Entry
	seen := map[string]bool{}
	n := 0
	for lines.Scan() {
		n++
		if limited.N == 0 {
			break
		}
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		e, err := parseEntry(line)
		if err == nil {
			err = e.check(seen)
		}
		if err != nil {
			return nil, fmt.Errorf("parse manifest: line %d: %w", n, err)
		}
		entries = append(entries, e)
	}
	if limited.N == 0 {
		return nil, fmt.Errorf("parse manifest: it has more than %d bytes", MaxManifest)
	}
	if err := lines.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return nil, fmt.Errorf("parse manifest: line %d is too long", n+1)
		}
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	return entries, nil
}

// parseEntry takes a line apart. A name may hold parentheses and equals
// signs, so its end is looked for from the line's end.
func parseEntry(line string) (Entry, error) {
	algorithm, rest, ok := strings.Cut(line, "(")
	end := strings.LastIndexByte(rest, '=')
	if !ok || end < 0 {
		return Entry{}, errors.New("want the form ALGORITHM(name)= digest")
	}
	name, ok := strings.CutSuffix(strings.TrimRight(rest[:end], " \t"), ")")
	if !ok {
		return Entry{}, errors.New("want the form ALGORITHM(name)= digest")
	}
	return Entry{
		Algorithm: Algorithm(strings.TrimRight(algorithm, " \t")),
		Name:      name,
		Digest:    strings.ToLower(strings.TrimSpace(rest[end+1:])),
	}, nil
}

// check says what is wrong with e, given the names that came before it.
func (e Entry) check(seen map[string]bool) error {
	size := e.Algorithm.size()
	if size == 0 {
		return fmt.Errorf("unknown algorithm %q, want SHA1, SHA256 or SHA512", e.Algorithm)
	}
	if err := checkName(e.Name); err != nil {
		return err
	}
	if len(e.Digest) != 2*size {
		return fmt.Errorf("%s digest of %q has %d digits, want %d", e.Algorithm, e.Name, len(e.Digest), 2*size)
	}
	if _, err := hex.DecodeString(e.Digest); err != nil || strings.ToLower(e.Digest) != e.Digest {
		return fmt.Errorf("%s digest of %q is not lower-case hexadecimal", e.Algorithm, e.Name)
	}
	if seen[e.Name] {
		return fmt.Errorf("second digest for %q", e.Name)
	}
	seen[e.Name] = true
	return nil
}

// checkName refuses what is not the plain name of a file in the package's
// folder.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("file name is empty")
	case len(name) > maxName:
		return fmt.Errorf("file name has %d bytes, at most %d are allowed", len(name), maxName)
	case name == "." || name == "..":
		return fmt.Errorf("file name is %q", name)
	case !utf8.ValidString(name):
		return fmt.Errorf("file name %q is not valid UTF-8", name)
	case strings.ContainsAny(name, `/\`):
		return fmt.Errorf("file name %q has a path in it", name)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("file name %q has control characters", name)
	}
	return nil
}
