package boottest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
)

// Limits on a document, far above what a domain needs, and on what is said of
// it.
const (
	maxDocument = 4 << 20
	maxDepth    = 32
	maxProblems = 20
)

// element is an XML element whose parts are taken by those who understand
// them. What is left in the end, nobody understood.
type element struct {
	name   string
	number string // "[2]" for the second of several
	parent *element
	attrs  map[string]string
	text   []byte
	// children nobody has taken yet, and those somebody has.
	children, taken []*element
	problems        *problems
}

// problems are what is wrong with a document, in the order found.
type problems struct {
	errs []error
	more int // not kept
}

func (p *problems) err() error {
	if p.more > 0 {
		return errors.Join(append(slices.Clone(p.errs), fmt.Errorf("and %d more", p.more))...)
	}
	return errors.Join(p.errs...)
}

// path says where e is: /domain/devices/disk[2].
func (e *element) path() string {
	if e.parent == nil {
		return "/" + e.name
	}
	return e.parent.path() + "/" + e.name + e.number
}

func (e *element) fail(format string, args ...any) {
	if p := e.problems; len(p.errs) < maxProblems {
		p.errs = append(p.errs, fmt.Errorf("%s: %s", e.path(), fmt.Sprintf(format, args...)))
	} else {
		p.more++
	}
}

// full writes a name with its namespace, so that it is no name of libvirt's.
func full(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

// parse reads a whole document without its comments and instructions.
func parse(doc []byte) (*element, error) {
	if len(doc) > maxDocument {
		return nil, fmt.Errorf("document has %d bytes, want at most %d", len(doc), maxDocument)
	}
	d := xml.NewDecoder(bytes.NewReader(doc))
	var root, at *element
	depth := 0
	found := &problems{}
	for {
		token, err := d.Token()
		line, _ := d.InputPos()
		switch {
		case err == io.EOF && root != nil:
			return root, nil
		case err == io.EOF:
			return nil, errors.New("document has no element")
		case err != nil:
			return nil, err // it has the line
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := &element{name: full(token.Name), parent: at, attrs: map[string]string{}, problems: found}
			for _, a := range token.Attr {
				name := full(a.Name)
				if _, twice := e.attrs[name]; twice {
					return nil, fmt.Errorf("line %d: attribute %s is there twice", line, name)
				}
				e.attrs[name] = a.Value
			}
			switch {
			case at != nil:
				at.children = append(at.children, e)
			case root == nil:
				root = e
			default:
				return nil, fmt.Errorf("line %d: a second document begins", line)
			}
			if depth++; depth > maxDepth {
				return nil, fmt.Errorf("line %d: elements lie more than %d deep", line, maxDepth)
			}
			at = e
		case xml.EndElement:
			at = at.parent
			depth--
		case xml.CharData:
			if at != nil {
				at.text = append(at.text, token...)
			}
		}
	}
}

// attr takes an attribute; it is empty when there is none.
func (e *element) attr(name string) string {
	v := e.attrs[name]
	delete(e.attrs, name)
	return v
}

// want takes an attribute and wants it to be one of values; "" stands for
// none. It gives "" when it is not.
func (e *element) want(name string, values ...string) string {
	v := e.attr(name)
	if !slices.Contains(values, v) {
		e.fail("attribute %s is %q, want one of %q", name, v, values)
		return ""
	}
	return v
}

// content takes the text between the tags.
func (e *element) content() string {
	s := string(bytes.TrimSpace(e.text))
	e.text = nil
	return s
}

// wantContent takes the text and wants it to be value.
func (e *element) wantContent(value string) {
	if s := e.content(); s != value {
		e.fail("text is %q, want %q", s, value)
	}
}

// wantMatch takes the text and wants it to match a regular expression. It
// gives the text, also when it does not.
func (e *element) wantMatch(pattern string) string {
	s := e.content()
	if !regexp.MustCompile(pattern).MatchString(s) {
		e.fail("text is %q, want one like %s", s, pattern)
	}
	return s
}

// int takes an attribute that is a number from least to most.
func (e *element) int(name string, least, most int) int {
	return e.parseInt("attribute "+name, e.attr(name), least, most)
}

// contentInt takes the text, a number from least to most.
func (e *element) contentInt(least, most int) int {
	return e.parseInt("text", e.content(), least, most)
}

func (e *element) parseInt(what, s string, least, most int) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		e.fail("%s is %q, want a number from %d to %d", what, s, least, most)
		return least
	}
	return n
}

// all takes the children of that name.
func (e *element) all(name string) []*element {
	var these, rest []*element
	for _, c := range e.children {
		if c.name == name {
			these = append(these, c)
			c.number = "[" + strconv.Itoa(len(these)) + "]"
		} else {
			rest = append(rest, c)
		}
	}
	if len(these) == 1 {
		these[0].number = ""
	}
	e.children, e.taken = rest, append(e.taken, these...)
	return these
}

// maybe takes the only child of that name; it is nil when there is none.
func (e *element) maybe(name string) *element {
	these := e.all(name)
	if len(these) == 0 {
		return nil
	}
	if len(these) > 1 {
		e.fail("there are %d elements %s, want one", len(these), name)
	}
	return these[0]
}

// one takes the only child of that name, which must be there.
func (e *element) one(name string) *element {
	c := e.maybe(name)
	if c == nil {
		e.fail("there is no element %s", name)
		// Whoever asked goes on; what is missing in this one is not said.
		c = &element{name: name, parent: e, attrs: map[string]string{}, problems: &problems{}}
	}
	return c
}

// skip drops the children of those names with all that is in them, and says
// how many there were.
func (e *element) skip(names ...string) int {
	before := len(e.children)
	e.children = slices.DeleteFunc(e.children, func(c *element) bool { return slices.Contains(names, c.name) })
	return before - len(e.children)
}

// leftovers reports everything in e that nobody took.
func (e *element) leftovers() {
	for _, name := range slices.Sorted(maps.Keys(e.attrs)) {
		e.fail("attribute %s is not understood, its value is %q", name, e.attrs[name])
	}
	if s := bytes.TrimSpace(e.text); len(s) > 0 {
		e.fail("text %.100q is not understood", s)
	}
	for _, c := range e.children {
		e.fail("element %s is not understood", c.name)
	}
	for _, c := range e.taken {
		c.leftovers()
	}
}
