package output

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxStem leaves room in a file name of 255 bytes for what is appended to the
// stem: "-disk-NNN.vmdk.partial" and the like.
const maxStem = 200

// Stem makes a VM's name a safe beginning of file names: no separators, no
// control characters, no leading dot or dash, valid UTF-8, at most 200 bytes.
// A name of which nothing is left becomes fallback.
func Stem(name, fallback string) string {
	var b strings.Builder
	for _, r := range name {
		switch {
		case r == utf8.RuneError, r == '/', r == '\\', unicode.IsControl(r), !unicode.IsPrint(r) && r != ' ':
			r = '_'
		}
		if b.Len()+utf8.RuneLen(r) > maxStem {
			break
		}
		b.WriteRune(r)
	}
	s := strings.TrimRight(b.String(), " .")
	s = strings.TrimLeft(s, " ")
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "-") {
		s = "_" + s[1:]
	}
	if strings.Trim(s, "_.") == "" {
		return fallback
	}
	return s
}

// Extension gives the extension of a name that a host suggested if it is a
// harmless one: a dot and one to eight ASCII letters or digits. Otherwise
// fallback.
func Extension(suggested, fallback string) string {
	i := strings.LastIndexByte(suggested, '.')
	if i < 0 {
		return fallback
	}
	ext := suggested[i+1:]
	if ext == "" || len(ext) > 8 {
		return fallback
	}
	for _, c := range []byte(ext) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return fallback
		}
	}
	return "." + strings.ToLower(ext)
}
