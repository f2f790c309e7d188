package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// contract compares answers with a description of the API, and remembers what
// of the description it has seen.
type contract struct {
	doc  *openapi3.T
	seen map[string]bool
}

func newContract(t *testing.T, description []byte) *contract {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(description)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context(), openapi3.EnableExamplesValidation(), openapi3.EnableSchemaPatternValidation()); err != nil {
		t.Fatal(err)
	}
	return &contract{doc: doc, seen: map[string]bool{}}
}

func (c *contract) operation(method, pattern string) *openapi3.Operation {
	if item := c.doc.Paths.Value(pattern); item != nil {
		return item.GetOperation(method)
	}
	return nil
}

// valid says whether a value is what a schema asks for.
func (c *contract) valid(s *openapi3.SchemaRef, value any) error {
	return c.doc.ValidateSchemaJSON(s.Value, value, openapi3.EnableJSONSchema2020(), openapi3.EnableFormatValidation())
}

// answer names what an answer has that its operation's description has not.
func (c *contract) answer(op *openapi3.Operation, resp *http.Response, body []byte) []string {
	status := strconv.Itoa(resp.StatusCode)
	described := op.Responses.Value(status)
	if described == nil {
		return []string{fmt.Sprintf("the status %s is not described: %s", status, body)}
	}
	c.seen[op.OperationID+" "+status] = true
	return c.response(described.Value, resp, body)
}

func (c *contract) response(described *openapi3.Response, resp *http.Response, body []byte) (bad []string) {
	for name, h := range described.Headers {
		value := resp.Header.Get(name)
		var err error
		switch {
		case value == "" && h.Value.Required:
			err = fmt.Errorf("it is missing")
		case value != "" && h.Value.Schema.Value.Type.Is("integer"):
			var n float64
			if n, err = strconv.ParseFloat(value, 64); err == nil {
				err = c.valid(h.Value.Schema, n)
			}
		case value != "":
			err = c.valid(h.Value.Schema, value)
		}
		if err != nil {
			bad = append(bad, fmt.Sprintf("header %s: %v", name, err))
		}
	}
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return append(bad, "Content-Type: "+err.Error())
	}
	media := described.Content.Get(kind)
	if described.Content[kind] == nil {
		return append(bad, fmt.Sprintf("the type %s is not described", kind))
	}
	switch kind {
	case "application/json":
		return append(bad, c.value(media.Schema, body)...)
	case "text/event-stream":
		return append(bad, c.stream(media, string(body))...)
	}
	return bad
}

// value judges a JSON document.
func (c *contract) value(s *openapi3.SchemaRef, data []byte) []string {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return []string{err.Error()}
	}
	var bad []string
	if err := c.valid(s, v); err != nil {
		bad = append(bad, fmt.Sprintf("%v in %s", err, data))
	}
	return append(bad, c.walk(s, v, "", "")...)
}

// stream judges server-sent events. The last one may be cut off.
func (c *contract) stream(media *openapi3.MediaType, text string) (bad []string) {
	schemas := eventSchemas(c.doc, media)
	events := strings.Split(text, "\n\n")
	for _, e := range events[:len(events)-1] {
		if strings.HasPrefix(e, ": ") {
			continue // a comment
		}
		fields := map[string]string{}
		for line := range strings.Lines(e) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			fields[name] = value
		}
		s := schemas[fields["event"]]
		if s == nil || len(fields) != 3 || fields["id"] == "" {
			bad = append(bad, fmt.Sprintf("an event that is not described: %q", e))
			continue
		}
		c.seen["event "+fields["event"]] = true
		bad = append(bad, c.value(s, []byte(fields["data"]))...)
	}
	return bad
}

// eventSchemas are those of the data by the names of events.
func eventSchemas(doc *openapi3.T, media *openapi3.MediaType) map[string]*openapi3.SchemaRef {
	out := map[string]*openapi3.SchemaRef{}
	byName, _ := media.Extensions["x-event-data"].(map[string]any)
	for name, v := range byName {
		ref, _ := v.(map[string]any)
		text, _ := ref["$ref"].(string)
		s := doc.Components.Schemas[path.Base(text)]
		if s == nil {
			panic("x-event-data: no schema " + text)
		}
		out[name] = &openapi3.SchemaRef{Ref: text, Value: s.Value}
	}
	return out
}

// place names a schema: where it is defined, or where in its parent.
func place(s *openapi3.SchemaRef, parent, part string) string {
	if s.Ref != "" {
		return path.Base(s.Ref)
	}
	return parent + part
}

// walk follows a value through its schema, notes properties and choices as
// seen, and names properties that the schema does not: within version 1 an
// answer may have more than is described, but not here.
func (c *contract) walk(s *openapi3.SchemaRef, v any, parent, part string) (bad []string) {
	at := place(s, parent, part)
	switch v := v.(type) {
	case map[string]any:
		for name, sub := range v {
			if p := s.Value.Properties[name]; p != nil {
				c.seen[at+"."+name] = true
				bad = append(bad, c.walk(p, sub, at, "."+name)...)
			} else if more := s.Value.AdditionalProperties.Schema; more != nil {
				c.seen[at+".*"] = true
				bad = append(bad, c.walk(more, sub, at, ".*")...)
			} else {
				bad = append(bad, fmt.Sprintf("%s.%s is not described", at, name))
			}
		}
	case []any:
		for _, sub := range v {
			if s.Value.Items == nil {
				bad = append(bad, at+"[] is not described")
				continue
			}
			c.seen[at+"[]"] = true
			bad = append(bad, c.walk(s.Value.Items, sub, at, "[]")...)
		}
	case string:
		c.seen[at+"="+v] = true
	}
	return bad
}

// expect collects what a schema describes, as walk names it.
func expect(s *openapi3.SchemaRef, parent, part string, into map[string]bool) {
	at := place(s, parent, part)
	for _, e := range s.Value.Enum {
		into[fmt.Sprintf("%s=%v", at, e)] = true
	}
	for name, p := range s.Value.Properties {
		if key := at + "." + name; !into[key] {
			into[key] = true
			expect(p, at, "."+name, into)
		}
	}
	if p := s.Value.AdditionalProperties.Schema; p != nil && !into[at+".*"] {
		into[at+".*"] = true
		expect(p, at, ".*", into)
	}
	if s.Value.Items != nil && !into[at+"[]"] {
		into[at+"[]"] = true
		expect(s.Value.Items, at, "[]", into)
	}
}

// unseen lists what of the description no answer has had: statuses, events,
// properties, items of lists and maps, choices.
func (c *contract) unseen() []string {
	want := map[string]bool{}
	for _, item := range c.doc.Paths.Map() {
		for _, op := range item.Operations() {
			for status, resp := range op.Responses.Map() {
				want[op.OperationID+" "+status] = true
				for kind, media := range resp.Value.Content {
					if kind == "application/json" {
						expect(media.Schema, op.OperationID+" "+status, "", want)
					}
					for event, s := range eventSchemas(c.doc, media) {
						want["event "+event] = true
						expect(s, "", "", want)
					}
				}
			}
		}
	}
	maps.DeleteFunc(want, func(k string, _ bool) bool { return c.seen[k] })
	return slices.Sorted(maps.Keys(want))
}

// variants gives values that a schema takes and values that it does not, one
// for each of its keywords. Which is which the schema says itself: here is only
// what is worth a try.
func variants(s *openapi3.Schema) (out []any) {
	out = append(out, map[string]any{"unknown": 1}, []any{map[string]any{}}, "no such word", "a\x01b", 1.5, true, 7)
	out = append(out, s.Enum...)
	if s.Const != nil {
		out = append(out, s.Const)
	}
	out = append(out, s.Examples...)
	if s.Min != nil {
		out = append(out, *s.Min-1, *s.Min)
	}
	if s.Max != nil {
		out = append(out, *s.Max, *s.Max+1)
	}
	if s.MinLength > 0 {
		out = append(out, strings.Repeat("/", int(s.MinLength)-1))
	}
	if s.MaxLength != nil {
		out = append(out, "/"+strings.Repeat("x", int(*s.MaxLength)-1), "/"+strings.Repeat("x", int(*s.MaxLength)))
	}
	if s.MinItems > 0 {
		out = append(out, []any{})
	}
	if s.Items != nil {
		for _, v := range variants(s.Items.Value) {
			out = append(out, []any{v})
		}
	}
	if p := s.AdditionalProperties.Schema; p != nil {
		for _, v := range variants(p.Value) {
			out = append(out, map[string]any{"x": v})
		}
	}
	if s.MaxProps != nil {
		full := map[string]any{}
		for i := range *s.MaxProps {
			full[fmt.Sprint(i)] = "x"
		}
		more := maps.Clone(full)
		more["more"] = "x"
		out = append(out, full, more)
	}
	for _, alternative := range s.OneOf {
		out = append(out, variants(alternative.Value)...)
	}
	for name, p := range s.Properties {
		for _, v := range variants(p.Value) {
			out = append(out, map[string]any{name: v})
		}
	}
	return out
}

// with gives a copy of a JSON object with one key set.
func with(base map[string]any, key string, value any) map[string]any {
	out := maps.Clone(base)
	out[key] = value
	return out
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
