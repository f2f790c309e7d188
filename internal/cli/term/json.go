package term

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// JSON prints v on standard output as one indented document. Control
// characters that JSON allows in strings, but that a terminal obeys (DEL, C1,
// those that turn the direction), are written as \uXXXX.
func (s IO) JSON(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("marshal answer: %w", err)
	}
	out := make([]byte, 0, b.Len())
	for _, r := range b.String() {
		if r != '\n' && unsafe(r) {
			out = fmt.Appendf(out, `\u%04x`, r)
			continue
		}
		out = append(out, string(r)...)
	}
	if _, err := s.Out.Write(out); err != nil {
		return fmt.Errorf("write standard output: %w", err)
	}
	return nil
}
