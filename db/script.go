package db

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/armature-go/armature/fault"
)

// sequence is the content of a [Migrations].
type sequence struct {
	table string
	files []script // at least one, in the order of the versions
}

func (s *sequence) lastVersion() int64 { return s.files[len(s.files)-1].version }

// script is a file of migrations.
type script struct {
	version    int64
	name, sum  string // sum is the SHA-256 of the text, with \n as line ends
	statements []string
	breaks     int64    // programs up to this version do not work with the schema; 0: none
	appliedIf  string   // a query; empty: none
	replaces   struct { // the last of the files that this one replaces; empty: none
		name, sum string
	}
}

// readScripts reads the files of all sequences.
func readScripts(list []Migrations) ([]*sequence, error) {
	if len(list) == 0 {
		return nil, fault.New(fault.Invalid, "migrations: the list is empty")
	}
	out := make([]*sequence, 0, len(list))
	for _, m := range list {
		s, err := m.readSequence()
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o *sequence) bool { return o.table == s.table }) {
			return nil, fault.New(fault.Invalid, "migrations: two sequences have the table of versions %s: give each sequence a Name of its own", s.table)
		}
		out = append(out, s)
	}
	return out, nil
}

func (m Migrations) readSequence() (*sequence, error) {
	s := &sequence{table: m.table()}
	if strings.Trim(m.Name, "abcdefghijklmnopqrstuvwxyz_") != "" || len(m.Name) > 40 {
		return nil, fault.New(fault.Invalid, "migrations: name %.50q: want at most 40 small letters and _", m.Name)
	}
	if m.Files == nil {
		return nil, fault.New(fault.Invalid, "migrations (%s): Files is not set", s.table)
	}
	names, err := fs.Glob(m.Files, "*.[sS][qQ][lL]")
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fault.New(fault.Invalid, "migrations (%s): the directory has no .sql file", s.table)
	}
	for _, name := range names {
		text, err := fs.ReadFile(m.Files, name)
		if err != nil {
			return nil, err
		}
		f, err := parseScript(name, string(text))
		if err != nil {
			return nil, fault.New(fault.Invalid, "migration %s: %w", name, err)
		}
		s.files = append(s.files, f)
	}
	slices.SortFunc(s.files, func(a, b script) int { return int(a.version - b.version) })
	return s, s.checkFiles()
}

// checkFiles returns Invalid if two files have the same version, or if a file other than the first one replaces others.
func (s *sequence) checkFiles() error {
	for i := range s.files[1:] {
		switch before, f := s.files[i], s.files[i+1]; {
		case before.version == f.version:
			return fault.New(fault.Invalid, "migrations %s and %s have the same version", before.name, f.name)
		case f.replaces.sum != "":
			return fault.New(fault.Invalid, "migration %s: only the first file can replace others", f.name)
		}
	}
	return nil
}

// declaration is the beginning of a line with a declaration, see [Migrations].
const declaration = "-- +db "

// parseScript reads a file.
func parseScript(name, text string) (f script, err error) {
	text = strings.ReplaceAll(strings.ReplaceAll(strings.TrimPrefix(text, "\ufeff"), "\r\n", "\n"), "\r", "\n")
	f.name, f.sum = name, sha256Hex(text)
	if !strings.HasSuffix(name, ".sql") {
		return f, fault.New(fault.Invalid, "the name does not end in .sql")
	}
	number, _, _ := strings.Cut(strings.TrimSuffix(name, ".sql"), "_")
	if f.version, err = strconv.ParseInt(number, 10, 64); err != nil || f.version < 1 {
		return f, fault.New(fault.Invalid, "the name does not begin with a number, such as 0007_what.sql")
	}
	if down := gooseDown.FindStringIndex(text); down != nil {
		text = text[:down[0]]
	}
	if err := f.readLines(text); err != nil {
		return f, err
	}
	for _, one := range f.statements {
		if word := firstWord(one); slices.Contains(refusedWords, word) {
			return f, fault.New(fault.Invalid, "%s is refused in a migration, because another process may execute the rest of the file: %.60s", word, one)
		}
	}
	return f, nil
}

// readLines reads the declarations and the statements of a file.
func (f *script) readLines(text string) error { //nolint:gocognit // see CONTRIBUTING.md
	var statement strings.Builder
	whole := false // between the lines StatementBegin and StatementEnd
	for line := range strings.Lines(text) {
		end := false
		trimmed := strings.TrimSpace(line)
		switch found := annotation.FindStringSubmatch(trimmed); {
		case found != nil && found[1] == "db":
			if err := f.readDeclaration(found[2]); err != nil {
				return err
			}
		case found != nil:
			begins, ends := found[2] == "StatementBegin", found[2] == "StatementEnd"
			whole, end = begins || whole && !ends, ends
		case statement.Len() == 0 && (trimmed == "" || strings.HasPrefix(trimmed, "--")):
		default: // a line with two hyphens may be a part of a text
			statement.WriteString(line)
			end = statementEnd.MatchString(trimmed) && !whole
		}
		if end && statement.Len() > 0 {
			f.statements = append(f.statements, strings.TrimSpace(statement.String()))
			statement.Reset()
		}
	}
	if rest := strings.TrimSpace(statement.String()); rest != "" || whole {
		return fault.New(fault.Invalid, "the last statement has no end: want a semicolon at the end of a line: %.60s", rest)
	}
	return nil
}

// refusedWords begin statements that change the session or the transaction.
var refusedWords = []string{"SET", "USE", "LOCK", "UNLOCK", "BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "END", "ATTACH", "DETACH"}

var (
	// annotation matches a line with an instruction to package db or to goose, such as "-- +goose Up".
	annotation = regexp.MustCompile(`^--\s*\+(db|goose)\s+(.*)$`)
	gooseDown  = regexp.MustCompile(`(?im)^\s*--\s*\+goose\s+down\s*$`)
	// statementEnd matches the end of the last line of a statement: a semicolon, and perhaps a comment.
	statementEnd = regexp.MustCompile(`;(\s*--[^']*)?$`)
	// blockComment matches all comments before a statement, also those with two hyphens.
	blockComment = regexp.MustCompile(`^(\s*/\*(?s:.*?)\*/|\s*--[^\n]*\n)*\s*`)
)

// firstWord returns the first word of a statement, in capital letters.
func firstWord(statement string) string {
	word, _, _ := strings.Cut(strings.Join(strings.Fields(statement[len(blockComment.FindString(statement)):]), " "), " ")
	return strings.ToUpper(strings.TrimSuffix(word, ";"))
}

// sha256Hex returns the SHA-256 of a text.
func sha256Hex(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// sumOf returns the checksum of the first n statements, or of all if there are fewer.
func (f *script) sumOf(n int) string {
	return sha256Hex(strings.Join(f.statements[:min(n, len(f.statements))], "\x00"))
}

// readDeclaration reads the declaration s of a line.
func (f *script) readDeclaration(s string) error {
	what, rest, _ := strings.Cut(s, " ")
	fields := strings.Fields(rest)
	switch {
	case what == "breaks" && len(fields) == 1:
		n, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil || n < 1 || n >= f.version {
			return fault.New(fault.Invalid, "%s%s: want the last version of the programs that do not work any more, lower than %d", declaration, s, f.version)
		}
		f.breaks = n
	case what == "applied-if" && len(fields) > 1 && !strings.Contains(rest, ";"):
		f.appliedIf = rest
	case what == "replaces" && len(fields) == 2 && len(fields[1]) == 2*sha256.Size:
		f.replaces.name, f.replaces.sum = fields[0], fields[1]
	default:
		return fault.New(fault.Invalid, "%s%s: want breaks VERSION, applied-if QUERY, or replaces NAME SHA256", declaration, s)
	}
	return nil
}

// changesSchema reports whether the statement changes the schema, so that MySQL commits after it.
func changesSchema(statement string) bool {
	return slices.Contains([]string{"CREATE", "ALTER", "DROP", "RENAME", "TRUNCATE"}, firstWord(statement))
}
