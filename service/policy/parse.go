package policy

import (
	"errors"
	"fmt"
	"strings"
)

// maxNested is how deep parentheses and nots may be nested.
const maxNested = 100

// parse reads a check.
func parse(text string) (check, error) {
	if text == "" {
		return always(true), nil
	}
	p := &parser{tokens: tokens(text)}
	if len(p.tokens) == 0 {
		return nil, errors.New(`a blank check: write "@" to allow, "!" to deny`)
	}
	c, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if len(p.tokens) > 0 {
		return nil, p.fail("and, or or the end")
	}
	return c, nil
}

// token is a word of a check, with where it stands, from 1.
type token struct {
	text string
	at   int
}

// tokens splits a check at blanks, and takes parentheses off the words at both ends.
func tokens(text string) []token {
	var out []token
	for at := 0; at < len(text); {
		if strings.IndexByte(" \t\r\n", text[at]) >= 0 {
			at++
			continue
		}
		end := at
		for quote := byte(0); end < len(text) && (quote != 0 || strings.IndexByte(" \t\r\n", text[end]) < 0); end++ {
			switch c := text[end]; {
			case quote != 0 && c == quote:
				quote = 0
			case quote == 0 && (c == '\'' || c == '"') && strings.IndexByte(text[end+1:], c) >= 0:
				quote = c
			}
		}
		word, begin := text[at:end], at
		for strings.HasPrefix(word, "(") {
			out = append(out, token{"(", begin + 1})
			word, begin = word[1:], begin+1
		}
		closing := 0
		for strings.HasSuffix(word, ")") {
			word = word[:len(word)-1]
			closing++
		}
		if word != "" {
			out = append(out, token{word, begin + 1})
		}
		for i := range closing {
			out = append(out, token{")", begin + len(word) + i + 1})
		}
		at = end
	}
	return out
}

type parser struct {
	tokens []token
	last   int // where the last token stood
}

func (p *parser) peek() string {
	if len(p.tokens) == 0 {
		return ""
	}
	return p.tokens[0].text
}

// word reports whether the next token is a word, in whatever case, and passes it.
func (p *parser) word(w string) bool {
	if !strings.EqualFold(p.peek(), w) || len(p.tokens) == 0 {
		return false
	}
	p.last = p.tokens[0].at
	p.tokens = p.tokens[1:]
	return true
}

func (p *parser) fail(want string) error {
	if len(p.tokens) == 0 {
		return fmt.Errorf("after column %d: want %s, not the end", p.last, want)
	}
	return fmt.Errorf("column %d: want %s, not %q", p.tokens[0].at, want, p.tokens[0].text)
}

func (p *parser) or(depth int) (check, error) {
	return p.list(depth, "or", p.and, func(l []check) check { return either(l) })
}

func (p *parser) and(depth int) (check, error) {
	return p.list(depth, "and", p.not, func(l []check) check { return both(l) })
}

func (p *parser) list(depth int, word string, one func(int) (check, error), of func([]check) check) (check, error) {
	var list []check
	for {
		c, err := one(depth)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
		if !p.word(word) {
			break
		}
	}
	if len(list) == 1 {
		return list[0], nil
	}
	return of(list), nil
}

func (p *parser) not(depth int) (check, error) {
	if depth > maxNested {
		return nil, fmt.Errorf("column %d: nested deeper than %d", p.last, maxNested)
	}
	switch {
	case p.word("not"):
		c, err := p.not(depth + 1)
		return not{c}, err
	case p.word("("):
		c, err := p.or(depth + 1)
		if err == nil && !p.word(")") {
			err = p.fail("and, or or )")
		}
		return c, err
	case len(p.tokens) == 0:
		return nil, p.fail("a check")
	}
	t := p.tokens[0]
	switch strings.ToLower(t.text) {
	case "and", "or", ")":
		return nil, p.fail("a check")
	}
	c, err := atom(t.text)
	if err != nil {
		return nil, fmt.Errorf("column %d: %w", t.at, err)
	}
	p.last, p.tokens = t.at, p.tokens[1:]
	return c, nil
}

// atom reads a check without and, or and not.
func atom(word string) (check, error) {
	switch word {
	case "@":
		return always(true), nil
	case "!":
		return always(false), nil
	}
	kind, match, ok := cut(word)
	if !ok || kind == "" {
		return nil, fmt.Errorf("want KIND:VALUE, @ or !, not %q", word)
	}
	want, err := newTemplate(match)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "rule":
		return &ref{name: match}, nil
	case "role":
		return &role{want}, nil
	case "http", "https":
		return nil, errors.New("checks that ask another process are not supported: have that process write the rules' file instead")
	}
	return &generic{kind: kind, literal: literal(kind), want: want}, nil
}

// cut splits at the first colon outside of quotes.
func cut(word string) (kind, match string, ok bool) {
	begin := 0
	if word[0] == '\'' || word[0] == '"' {
		if end := strings.IndexByte(word[1:], word[0]); end >= 0 {
			begin = end + 2
		}
	}
	i := strings.IndexByte(word[begin:], ':')
	if i < 0 {
		return "", "", false
	}
	return word[:begin+i], word[begin+i+1:], true
}

// literal reports whether what stands on the left is a value: a text in quotes, a number,
// True, False or None.
func literal(kind string) bool {
	switch {
	case kind == "True", kind == "False", kind == "None":
		return true
	case kind[0] == '\'' || kind[0] == '"':
		return true
	}
	return strings.Trim(kind, "0123456789") == ""
}
