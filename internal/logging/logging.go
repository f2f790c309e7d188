// Package logging writes log records as the lines that the contract fixes,
// "[2026-01-16 23:59:35] INFO: starting download | files=4, totalSize=74088194540",
// or as JSON. A record is always one line, whatever its values hold, and an
// attribute that is named like a secret is masked.
package logging

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// The formats New takes.
const (
	Text = "text"
	JSON = "json"
)

// Masked stands for the value of an attribute that is named like a secret.
const Masked = "[redacted]"

// secrets are words that make an attribute's name that of a secret.
var secrets = []string{"password", "passwd", "secret", "token", "authorization", "cookie", "credential"}

// New returns a handler that writes records of level and above to w, in the
// given format: JSON, or lines for anything else. W sees one Write for each
// record, one at a time.
func New(w io.Writer, level slog.Leveler, format string) slog.Handler {
	if format == JSON {
		return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if secret(a.Key) {
				a.Value = slog.StringValue(Masked)
			}
			return a
		}})
	}
	return &handler{out: &output{w: w}, level: level}
}

type output struct {
	mu sync.Mutex
	w  io.Writer
}

type handler struct {
	out    *output
	level  slog.Leveler
	prefix string // open groups, each with a dot behind it
	attrs  string // attributes of WithAttrs, formatted
}

// Enabled is part of slog.Handler.
func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// WithGroup is part of slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "."
	return &c
}

// WithAttrs is part of slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	b := []byte(h.attrs)
	for _, a := range attrs {
		b = appendAttr(b, h.prefix, a)
	}
	c.attrs = string(b)
	return &c
}

// Handle is part of slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	at := r.Time
	if at.IsZero() {
		at = time.Now()
	}
	b := make([]byte, 0, 256)
	b = append(b, '[')
	b = at.Local().AppendFormat(b, time.DateTime)
	b = append(b, "] "...)
	b = append(b, Level(r.Level)...)
	b = append(b, ": "...)
	b = append(b, clean(r.Message)...)
	attrs := []byte(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		attrs = appendAttr(attrs, h.prefix, a)
		return true
	})
	if len(attrs) > 0 {
		b = append(b, " | "...)
		b = append(b, attrs...)
	}
	b = append(b, '\n')
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	_, err := h.out.w.Write(b)
	return err
}

// Level names a level by one of the four words: DEBUG, INFO, WARN, ERROR.
func Level(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "DEBUG"
	case l < slog.LevelWarn:
		return "INFO"
	case l < slog.LevelError:
		return "WARN"
	}
	return "ERROR"
}

// Attrs formats attributes as they stand in a line: key=value, joined by ", ",
// groups dotted, secrets masked, never more than one line.
func Attrs(attrs []slog.Attr) string {
	var b []byte
	for _, a := range attrs {
		b = appendAttr(b, "", a)
	}
	return string(b)
}

func appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	masked := secret(a.Key)
	v := a.Value
	if !masked {
		// A masked value is not even resolved.
		v = v.Resolve()
	}
	if !masked && v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, g := range v.Group() {
			b = appendAttr(b, prefix, g)
		}
		return b
	}
	if a.Equal(slog.Attr{}) {
		return b
	}
	if len(b) > 0 {
		b = append(b, ", "...)
	}
	b = append(b, clean(prefix)...)
	b = append(b, clean(a.Key)...)
	b = append(b, '=')
	switch {
	case masked:
		return append(b, Masked...)
	case v.Kind() == slog.KindTime:
		return v.Time().Local().AppendFormat(b, time.RFC3339)
	}
	return append(b, quote(v.String())...)
}

// quote leaves a value alone unless a reader could take it for something
// else: a second line, a second attribute, an escape sequence.
func quote(s string) string {
	if s == "" || strings.ContainsAny(s, `",|`) || !printable(s) {
		return strconv.Quote(s)
	}
	return s
}

// clean makes a message or key one printable line.
func clean(s string) string {
	if printable(s) {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func secret(key string) bool {
	key = strings.ToLower(key)
	return slices.ContainsFunc(secrets, func(s string) bool { return strings.Contains(key, s) })
}
