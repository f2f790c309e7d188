// Package strict reads YAML and JSON into one kind of tree with line numbers,
// and refuses what could surprise: aliases, merge keys, explicit tags, double
// keys, a second document, too much depth or size. Its errors never repeat a
// value of the document, because any value may be a password.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/hyper2kvm/hyper2kvm/internal/spelling"
)

// Limits of a document.
const (
	MaxSize  = 1 << 20 // bytes
	maxDepth = 24
	maxNodes = 200_000
)

// Kind is the type of a node.
type Kind string

// The kinds of nodes, by the words that errors use for them.
const (
	Map    Kind = "a map"
	List   Kind = "a list"
	String Kind = "text"
	Int    Kind = "a whole number"
	Float  Kind = "a number"
	Bool   Kind = "true or false"
	Null   Kind = "nothing"
	Date   Kind = "a date"
)

// Node is one value with the line it stands on, counted from 1.
type Node struct {
	Kind  Kind
	Line  int
	Value string  // of a scalar, as written
	Pairs []Pair  // of a Map, in order; no key occurs twice
	Items []*Node // of a List
}

// Pair is one key of a map with its value.
type Pair struct {
	Key  string
	Line int
	*Node
}

// Error is a fault of the document. Line is 0 when none can be named.
type Error struct {
	Line int
	Msg  string
}

// Error gives "line 7: message".
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Msg
	}
	return fmt.Sprintf("line %d: %s", e.Line, e.Msg)
}

func fault(line int, format string, args ...any) error {
	return &Error{line, fmt.Sprintf(format, args...)}
}

// Syntax says how a document is written.
type Syntax int

// The syntaxes. Either takes JSON when the document begins like a JSON
// object and is one, else YAML.
const (
	Either Syntax = iota
	YAML
	JSON
)

// Parse reads one document. An empty one is an error. All errors are *Error.
func Parse(data []byte, syntax Syntax) (*Node, error) {
	if len(data) > MaxSize {
		return nil, fault(0, "the document has %d bytes, at most %d are read", len(data), MaxSize)
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if !utf8.Valid(data) {
		return nil, fault(0, "the document is not valid UTF-8")
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fault(0, "the document is empty")
	}
	switch syntax {
	case JSON:
		return parseJSON(data)
	case YAML:
		return parseYAML(data)
	}
	if first := bytes.TrimSpace(data)[0]; first != '{' && first != '[' {
		return parseYAML(data)
	}
	n, err := parseJSON(data)
	if err != nil && !json.Valid(data) {
		// YAML's own maps in braces: keys without quotes, comments.
		if y, yerr := parseYAML(data); yerr == nil {
			return y, nil
		}
	}
	return n, err
}

// builder counts what it builds, so that a small document cannot become a
// large tree.
type builder struct{ nodes int }

func (b *builder) enter(line, depth int) error {
	b.nodes++
	if b.nodes > maxNodes {
		return fault(line, "the document holds more than %d values", maxNodes)
	}
	if depth > maxDepth {
		return fault(line, "nested deeper than %d levels", maxDepth)
	}
	return nil
}

func (n *Node) add(seen map[string]int, key string, line int, v *Node) error {
	if before, ok := seen[key]; ok {
		// The key is not named: in braces, a password with a comma in it turns
		// into a key.
		return fault(line, "a key stands twice in one map (before on line %d)", before)
	}
	seen[key] = line
	n.Pairs = append(n.Pairs, Pair{key, line, v})
	return nil
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

func parseYAML(data []byte) (*Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, fault(0, "the document is empty")
	} else if err != nil {
		return nil, yamlFault(err)
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		return nil, fault(second.Line, "a second document begins here, give one only")
	} else if !errors.Is(err, io.EOF) {
		return nil, yamlFault(err)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, fault(0, "the document is empty")
	}
	return new(builder).yaml(doc.Content[0], 0)
}

// yamlFault keeps the line of a syntax error and those messages that are
// constants of the library; the others may repeat a part of the document.
func yamlFault(err error) error {
	msg := err.Error()
	line := 0
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits by the expression
		msg = msg[len(m[0]):]
	}
	msg = strings.TrimPrefix(msg, "yaml: ")
	switch {
	case strings.Contains(msg, "anchor"):
		return fault(line, `not valid YAML: aliases are not taken; a value that begins with "*" or "&" needs quotes`)
	case strings.HasPrefix(msg, "did not find expected"),
		strings.HasPrefix(msg, "could not find expected"),
		strings.HasPrefix(msg, "found character that cannot start any token"),
		strings.HasPrefix(msg, "found unexpected end of stream"),
		strings.HasPrefix(msg, "mapping values are not allowed in this context"),
		strings.HasPrefix(msg, "block sequence entries are not allowed"),
		strings.HasPrefix(msg, "found a tab character"),
		strings.HasPrefix(msg, "found unknown escape character"),
		strings.HasPrefix(msg, "control characters are not allowed"),
		strings.HasPrefix(msg, "exceeded max depth"):
		return fault(line, "not valid YAML: %s", msg)
	}
	return fault(line, "not valid YAML")
}

var yamlKinds = map[string]Kind{
	"!!str": String, "!!int": Int, "!!float": Float, "!!bool": Bool, "!!null": Null, "!!timestamp": Date,
}

func (b *builder) yaml(y *yaml.Node, depth int) (*Node, error) {
	if err := b.enter(y.Line, depth); err != nil {
		return nil, err
	}
	switch {
	case y.Kind == yaml.AliasNode || y.Anchor != "":
		return nil, fault(y.Line, `anchors and aliases are not taken; a value that begins with "*" or "&" needs quotes`)
	case y.Style&yaml.TaggedStyle != 0:
		return nil, fault(y.Line, `tags are not taken; a value that begins with "!" needs quotes`)
	}
	n := &Node{Line: y.Line}
	switch y.Kind {
	case yaml.ScalarNode:
		kind, ok := yamlKinds[y.ShortTag()]
		if !ok {
			return nil, fault(y.Line, "a value of this type is not taken")
		}
		n.Kind, n.Value = kind, y.Value
	case yaml.SequenceNode:
		n.Kind = List
		for _, c := range y.Content {
			item, err := b.yaml(c, depth+1)
			if err != nil {
				return nil, err
			}
			n.Items = append(n.Items, item)
		}
	case yaml.MappingNode:
		n.Kind = Map
		seen := make(map[string]int, len(y.Content)/2)
		for i := 0; i+1 < len(y.Content); i += 2 {
			k := y.Content[i]
			if k.Kind == yaml.ScalarNode && k.ShortTag() == "!!merge" {
				return nil, fault(k.Line, "merge keys are not taken")
			}
			key, err := b.yaml(k, depth+1)
			if err != nil {
				return nil, err
			}
			if key.Kind != String {
				return nil, fault(k.Line, "a key is %s, want text", key.Kind)
			}
			v, err := b.yaml(y.Content[i+1], depth+1)
			if err != nil {
				return nil, err
			}
			if err := n.add(seen, key.Value, k.Line, v); err != nil {
				return nil, err
			}
		}
	default:
		return nil, fault(y.Line, "not valid YAML")
	}
	return n, nil
}

// jsonReader counts lines while the decoder moves on.
type jsonReader struct {
	builder
	data   []byte
	dec    *json.Decoder
	offset int
	at     int // line of offset
}

// line gives the line the decoder has come to.
func (r *jsonReader) line() int {
	next := min(int(r.dec.InputOffset()), len(r.data))
	r.at += bytes.Count(r.data[r.offset:next], []byte("\n"))
	r.offset = next
	return r.at
}

func (r *jsonReader) fault(err error) error {
	line := r.line()
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		end := min(max(0, int(s.Offset)-1), len(r.data))
		line = 1 + bytes.Count(r.data[:end], []byte("\n"))
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fault(line, "not valid JSON: it ends too early")
	}
	return fault(line, "not valid JSON")
}

func parseJSON(data []byte) (*Node, error) {
	r := &jsonReader{data: data, dec: json.NewDecoder(bytes.NewReader(data)), at: 1}
	r.dec.UseNumber()
	// The decoder's tokens leave out commas and colons without judging all of
	// them, so that validity is asked for first.
	if !json.Valid(data) {
		var discard any
		if err := json.Unmarshal(data, &discard); err != nil {
			return nil, r.fault(err)
		}
	}
	n, err := r.value(0)
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (r *jsonReader) value(depth int) (*Node, error) {
	tok, err := r.dec.Token()
	if err != nil {
		return nil, r.fault(err)
	}
	n := &Node{Line: r.line()}
	if err := r.enter(n.Line, depth); err != nil {
		return nil, err
	}
	switch v := tok.(type) {
	case string:
		n.Kind, n.Value = String, v
	case json.Number:
		n.Kind, n.Value = Int, v.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Kind = Float
		}
	case bool:
		n.Kind, n.Value = Bool, strconv.FormatBool(v)
	case nil:
		n.Kind = Null
	case json.Delim:
		if v == '[' {
			n.Kind = List
			for r.dec.More() {
				item, err := r.value(depth + 1)
				if err != nil {
					return nil, err
				}
				n.Items = append(n.Items, item)
			}
		} else {
			n.Kind = Map
			seen := map[string]int{}
			for r.dec.More() {
				tok, err := r.dec.Token()
				if err != nil {
					return nil, r.fault(err)
				}
				key, _ := tok.(string) // a valid object's key is one
				line := r.line()
				item, err := r.value(depth + 1)
				if err != nil {
					return nil, err
				}
				if err := n.add(seen, key, line, item); err != nil {
					return nil, err
				}
			}
		}
		if _, err := r.dec.Token(); err != nil {
			return nil, r.fault(err)
		}
	}
	return n, nil
}

// Text gives a node's text.
func (n *Node) Text() (string, error) {
	if n.Kind != String {
		hint := ""
		if n.Kind != Map && n.Kind != List {
			hint = " (put it in quotes)"
		}
		return "", fault(n.Line, "is %s, want text%s", n.Kind, hint)
	}
	return n.Value, nil
}

// Bool gives a node's truth value.
func (n *Node) Bool() (bool, error) {
	if n.Kind != Bool {
		return false, fault(n.Line, "is %s, want true or false", n.Kind)
	}
	return strings.EqualFold(n.Value, "true"), nil
}

// Int gives a node's whole number.
func (n *Node) Int() (int, error) {
	if n.Kind != Int {
		return 0, fault(n.Line, "is %s, want a whole number", n.Kind)
	}
	v, err := strconv.Atoi(n.Value)
	if err != nil {
		return 0, fault(n.Line, "is not a whole decimal number of reasonable size")
	}
	return v, nil
}

// Suggest gives the known word that word is probably meant to be, or "".
func Suggest(word string, known []string) string {
	if len(word) > 64 {
		return ""
	}
	word = strings.ToLower(word)
	best, bestDistance := "", 3
	for _, k := range known {
		limit := min(bestDistance, max(1, len(k)/3)+1)
		if d := spelling.Distance(word, strings.ToLower(k)); d < limit {
			best, bestDistance = k, d
		}
	}
	return best
}
