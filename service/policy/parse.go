package policy

import (
	"errors"
	"fmt"
	"strings"
)

// maxDepth is the maximum depth of nested parentheses and of "not", so that a check cannot overflow the stack.
const maxDepth = 100

// parseCheck parses the text of a check. An error has the column, from 1.
func parseCheck(text string) (check, error) {
	if text == "" {
		return constant(true), nil
	}
	p := &parser{tokens: splitTokens(text)}
	if len(p.tokens) == 0 {
		return nil, errors.New(`the check is blank: write "@" to allow or "!" to deny`)
	}
	c, err := p.parseOr(0)
	if err != nil {
		return nil, err
	}
	if len(p.tokens) > 0 {
		return nil, p.syntaxError(`"and", "or" or the end`)
	}
	return c, nil
}

// token is a word or a parenthesis of a check, with its column, from 1.
type token struct {
	text   string
	column int
}

// splitTokens splits a check at blanks outside of quotes. Parentheses at both ends of a word are tokens of
// their own; those within a word belong to the word.
func splitTokens(text string) []token {
	var out []token
	for at := 0; at < len(text); {
		if isBlank(text[at]) {
			at++
			continue
		}
		end := at + wordLen(text[at:])
		out = append(out, splitParentheses(text[at:end], at+1)...)
		at = end
	}
	return out
}

func isBlank(c byte) bool { return strings.IndexByte(" \t\r\n", c) >= 0 }

// wordLen returns the length of the word at the beginning of text. Blanks within quotes belong to the word. A quote that is
// never closed is an ordinary character.
func wordLen(text string) int {
	quote := byte(0)
	for i := range len(text) {
		switch c := text[i]; {
		case quote == 0 && isBlank(c):
			return i
		case c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"') && strings.IndexByte(text[i+1:], c) >= 0:
			quote = c
		}
	}
	return len(text)
}

// splitParentheses returns the parentheses at both ends of a word, and the rest of the word, as tokens.
func splitParentheses(word string, column int) (out []token) {
	inner := strings.TrimLeft(word, "(")
	for range len(word) - len(inner) {
		out = append(out, token{"(", column})
		column++
	}
	closing := len(inner)
	if inner = strings.TrimRight(inner, ")"); inner != "" {
		out = append(out, token{inner, column})
	}
	for i := len(inner); i < closing; i++ {
		out = append(out, token{")", column + i})
	}
	return out
}

// parser is a recursive descent parser. Its parse methods consume tokens. The parameter depth is the depth of nesting.
type parser struct {
	tokens []token // the tokens that are not parsed yet
	last   int     // column of the last parsed token
}

// nextText returns the text of the next token, or "" at the end.
func (p *parser) nextText() string {
	if len(p.tokens) == 0 {
		return ""
	}
	return p.tokens[0].text
}

// acceptWord consumes the next token if its text is word, in upper or lower case. It reports whether it did.
func (p *parser) acceptWord(word string) bool {
	if !strings.EqualFold(p.nextText(), word) || len(p.tokens) == 0 {
		return false
	}
	p.last = p.tokens[0].column
	p.tokens = p.tokens[1:]
	return true
}

// syntaxError returns an error that says what is wanted in place of the next token.
func (p *parser) syntaxError(want string) error {
	if len(p.tokens) == 0 {
		return fmt.Errorf("after column %d: want %s, not the end", p.last, want)
	}
	return fmt.Errorf("column %d: want %s, not %q", p.tokens[0].column, want, p.tokens[0].text)
}

// parseOr parses checks with "or" between them.
func (p *parser) parseOr(depth int) (check, error) {
	return p.parseList(depth, "or", p.parseAnd, func(l []check) check { return anyOf(l) })
}

// parseAnd parses checks with "and" between them.
func (p *parser) parseAnd(depth int) (check, error) {
	return p.parseList(depth, "and", p.parseNot, func(l []check) check { return allOf(l) })
}

// parseList parses a list of checks that are separated by the word. It parses each check with parseOne, and calls join with the list.
func (p *parser) parseList(depth int, word string, parseOne func(int) (check, error), join func([]check) check) (check, error) {
	var list []check
	for {
		c, err := parseOne(depth)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
		if !p.acceptWord(word) {
			break
		}
	}
	if len(list) == 1 {
		return list[0], nil
	}
	return join(list), nil
}

// parseNot parses a term, a check in parentheses, or "not" before one of these.
func (p *parser) parseNot(depth int) (check, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("column %d: nested deeper than %d", p.last, maxDepth)
	}
	switch {
	case p.acceptWord("not"):
		c, err := p.parseNot(depth + 1)
		return negation{c}, err
	case p.acceptWord("("):
		c, err := p.parseOr(depth + 1)
		if err == nil && !p.acceptWord(")") {
			err = p.syntaxError(`"and", "or" or ")"`)
		}
		return c, err
	case len(p.tokens) == 0:
		return nil, p.syntaxError("a check")
	}
	t := p.tokens[0]
	switch strings.ToLower(t.text) {
	case "and", "or", ")":
		return nil, p.syntaxError("a check")
	}
	c, err := parseTerm(t.text)
	if err != nil {
		return nil, fmt.Errorf("column %d: %w", t.column, err)
	}
	p.last, p.tokens = t.column, p.tokens[1:]
	return c, nil
}

// parseTerm parses a check without and, or and not.
func parseTerm(word string) (check, error) {
	switch word {
	case "@":
		return constant(true), nil
	case "!":
		return constant(false), nil
	}
	kind, match, ok := cutTerm(word)
	if !ok || kind == "" {
		return nil, fmt.Errorf("want KIND:VALUE, @ or !, not %q", word)
	}
	want, err := parseTemplate(match)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "rule":
		return &ref{name: match}, nil
	case "role":
		return &role{want}, nil
	case "http", "https":
		return nil, errors.New("checks that ask another process are not supported: let that process write a policy file instead")
	}
	return &comparison{kind: kind, literal: isLiteral(kind), want: want}, nil
}

// cutTerm splits a term at the first colon outside of quotes.
func cutTerm(word string) (kind, match string, ok bool) {
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

// isLiteral reports whether the left side of a term is a value: a text in quotes, a number, True, False or
// None.
func isLiteral(kind string) bool {
	switch {
	case kind == "True", kind == "False", kind == "None":
		return true
	case kind[0] == '\'' || kind[0] == '"':
		return true
	}
	return strings.Trim(kind, "0123456789") == ""
}
