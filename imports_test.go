package armature_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "github.com/armature-go/armature"

// External libraries in the import rule.
const (
	watermill = "github.com/ThreeDotsLabs/watermill"
	amqp      = "github.com/rabbitmq/amqp091-go"
	nats      = "github.com/nats-io/nats.go"
	mysql     = "github.com/go-sql-driver/mysql"
	plugin    = "github.com/hashicorp/go-plugin"
	grpc      = "google.golang.org/grpc"
	protobuf  = "google.golang.org/protobuf"

	prometheus = "github.com/prometheus/client_golang"
	otel       = "go.opentelemetry.io/otel"
)

// rules is the import rule of docs/architecture.md: it lists the packages that each package
// may import besides the standard library. A key is the path of a package, or, with "/..." at
// the end, of a tree of packages. If several keys match a package, the longest key counts. A
// package that matches no key breaks the rule. The values name packages and trees of this
// module in the same way, and external libraries, each with all its packages.
var rules = map[string][]string{
	".":      nil,
	"fault":  nil,
	"reqctx": nil,

	"tlsfile": {"fault"},
	"listing": {"fault"},

	"rpc":                   {"rpc/bus", "rpc/internal/names", "rpc/internal/partial", "internal/backoff", "internal/outage", "internal/text", "fault", "reqctx", "golang.org/x/sync"},
	"rpc/bus":               {"rpc/internal/names", "internal/version", "fault"},
	"rpc/membus":            {"rpc/bus"},
	"rpc/amqpbus":           {"rpc/bus", "internal/backoff", "tlsfile", "internal/outage", "rpc/internal/...", "internal/text", "fault", amqp, "golang.org/x/sync"},
	"rpc/natsbus":           {"rpc/bus", "internal/backoff", "tlsfile", "internal/outage", "rpc/internal/...", "internal/text", "fault", nats},
	"rpc/watermillbus":      {"rpc/bus", "internal/backoff", "fault", watermill},
	"rpc/watermillbus/amqp": {"rpc/bus", "internal/backoff", "rpc/watermillbus", "rpc/internal/...", "fault", watermill, watermill + "-amqp", amqp},
	"rpc/urlbus":            {"rpc/bus", "internal/urlcheck", "tlsfile", "rpc/membus", "rpc/amqpbus", "rpc/natsbus", "fault"},
	"rpc/internal/...":      {"rpc/bus", "internal/backoff", "internal/urlcheck", "fault"},
	"rpc/rpcprom":           {"rpc", "rpc/bus", "fault", prometheus},
	"rpc/rpcotel":           {"rpc", "fault", "reqctx", otel},
	"rpc/rpctest":           {"rpc/internal/partial", "internal/goldentest", "internal/waittest", "rpc", "rpc/bus", "rpc/membus", "fault", "reqctx", "github.com/google/go-cmp"},

	"scheduler":                         {"fault"},
	"scheduler/schedulertest":           {"scheduler"},
	"scheduler/schedulerprom":           {"scheduler", prometheus},
	"scheduler/placement":               {"scheduler", "internal/backoff", "db", "fault", "github.com/jmoiron/sqlx"},
	"scheduler/placement/placementprom": {"scheduler/placement", prometheus},
	"scheduler/placement/placementtest": {"scheduler/placement", "fault", "github.com/google/go-cmp"},

	"driver":            {"internal/backoff", "driver/driverpb", "internal/tempdir", "internal/text", "fault", "reqctx", plugin, "github.com/hashicorp/go-hclog", grpc, protobuf, "golang.org/x/sys/unix"},
	"driver/driverpb":   {grpc, protobuf},
	"driver/driverprom": {"driver", "fault", prometheus},
	"driver/drivertest": {"driver", "internal/goldentest", "fault", "reqctx", plugin, grpc, protobuf},

	"db":                 {"db/internal/engine", "internal/backoff", "fault", "listing", "tlsfile", "internal/text", "github.com/jmoiron/sqlx"},
	"db/internal/engine": {"fault"},
	"db/mysqldb":         {"db/internal/engine", "internal/urlcheck", "fault", "tlsfile", mysql},
	"db/sqlitedb":        {"db/internal/engine", "fault", "modernc.org/sqlite"},
	"db/dbprom":          {"db", "fault", prometheus},
	"db/dbtest":          {"db", "db/mysqldb", "db/sqlitedb", "fault", mysql, "github.com/jmoiron/sqlx", "internal/envtest", "internal/testenv"},

	"service":             {"internal/backoff", "service/internal/bodytime", "internal/outage", "fault", "tlsfile", "reqctx", "github.com/coreos/go-systemd/v22", "golang.org/x/sys/unix"},
	"service/...":         {"service/...", "fault", "reqctx"},
	"service/config":      {"internal/text", "fault"},
	"service/auth":        {"service", "internal/outage", "internal/urlcheck", "service/api", "fault", "tlsfile", "reqctx", "golang.org/x/sync"},
	"service/policy":      {"service", "internal/outage", "internal/text", "fault", "reqctx", "go.yaml.in/yaml/v4"},
	"service/serviceprom": {"service", prometheus},
	"service/api/apitest": {"github.com/santhosh-tekuri/jsonschema/v6"},
	"service/api/apiprom": {"service/api", prometheus},
	"service/api/apiotel": {"service/api", "reqctx", otel},
	"service/api": {
		"service/...", "internal/outage", "internal/version", "fault", "listing", "reqctx", "github.com/santhosh-tekuri/jsonschema/v6",
		"github.com/klauspost/compress", "github.com/rs/cors",
	},
	"service/membership":                {"service/...", "internal/outage", "internal/filelock", "internal/version", "db", "fault", "reqctx", "github.com/jmoiron/sqlx", "github.com/google/uuid"},
	"service/membership/rpccaps":        {"service/membership", "rpc", "golang.org/x/sync"},
	"service/quota":                     {"db", "fault", "github.com/jmoiron/sqlx"},
	"service/operation/operationtest":   {"service/operation", "db", "db/sqlitedb", "github.com/jmoiron/sqlx"},
	"service/operation/operationprom":   {"service/operation", prometheus},
	"service/membership/membershipprom": {"service/membership", prometheus},
	"service/auth/authprom":             {"service/auth", prometheus},
	"service/operation":                 {"internal/backoff", "service/...", "internal/outage", "db", "fault", "reqctx", "github.com/jmoiron/sqlx", "github.com/google/uuid"},
	"service/idempotency":               {"service/api", "db", "fault", "github.com/jmoiron/sqlx"},

	// component stands above all library packages, and no package imports it.
	"component/internal/inject": {"rpc/urlbus"},
	"component/componenttest":   {"component", "component/internal/inject", "rpc/bus", "rpc/membus", "db", "fault", "service/operation", "github.com/jmoiron/sqlx"},
	"component": {
		"component/internal/inject", "fault", "reqctx", "tlsfile", "rpc", "rpc/...", "scheduler", "scheduler/placement", "scheduler/placement/placementprom", "scheduler/schedulerprom", "driver", "driver/driverprom", "db", "db/mysqldb", "db/sqlitedb", "db/dbprom", "service", "service/...",
		"internal/backoff", "internal/outage", "internal/tempdir", "internal/text", "internal/urlcheck", "github.com/jmoiron/sqlx", "github.com/spf13/cobra", "go.yaml.in/yaml/v4", prometheus, otel,
	},

	"testenv":               {"internal/testenv"},
	"internal/testenv":      {mysql, amqp, nats, "modernc.org/sqlite"},
	"internal/testenv/run":  {"internal/testenv"},
	"internal/clienttest":   {},
	"internal/envtest":      {"internal/testenv"},
	"internal/keystonetest": {"internal/envtest", "internal/testenv", "github.com/gophercloud/gophercloud/v2"},
	"internal/compare":      {},
	"internal/goldentest":   {"github.com/google/go-cmp"},
	"internal/promtest":     {prometheus, "github.com/prometheus/client_model"},
	"internal/releasetest":  {},
	"internal/benchreport":  {"internal/compare", "internal/testenv", mysql, amqp, nats},
	"internal/releasecheck": {"github.com/pb33f/libopenapi"},
	"internal/backoff":      {},
	"internal/keylock":      {},
	"internal/text":         {},
	"internal/outage":       {},
	"internal/logtest":      {},
	"internal/filelock":     {},
	"internal/tempdir":      {"internal/filelock"},
	"internal/certtest":     {},
	"internal/guidetest":    {},
	"internal/waittest":     {},
	"internal/version":      {},
	"internal/urlcheck":     {"fault"},

	// The command writes drivers of nova-mini from the examples, and checks them with nova-mini's rules. So it is the only package outside of examples
	// that knows nova-mini's contract of drivers. No other rule names an example or a test package.
	"cmd/armature":              {"driver/drivertest", "internal/text", "examples/drivers", "examples/nova-mini/compute", "examples/nova-mini/compute/computetest", "github.com/spf13/cobra", "golang.org/x/mod"},
	"cmd/armature/template/...": nil, // not checked: it is a component

	"examples/...": nil, // not checked: examples may import any package
}

// pkg is the output of `go list -json` for a package.
type pkg struct {
	ImportPath, Dir                          string
	Standard                                 bool
	Module                                   *struct{ Path string }
	GoFiles, IgnoredGoFiles                  []string
	Imports, Deps, TestImports, XTestImports []string
}

// name is the package's path in the module, "." for the root.
func (p *pkg) name() string { return short(p.ImportPath) }

func (p *pkg) own() bool { return p.Module != nil && p.Module.Path == module }

func short(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

// readTree reads every directory of the repository. A test that runs the go
// command must call readTree. Otherwise "go test" would use a cached result after a change
// of a file, because it tracks only the files and directories that the test itself reads.
func readTree(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(".", func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), ".git") {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// listPackages returns the packages of the module and all their dependencies, by import path.
func listPackages(t *testing.T) map[string]*pkg {
	t.Helper()
	readTree(t)
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps",
		"-json=ImportPath,Dir,Standard,Module,GoFiles,IgnoredGoFiles,Imports,Deps,TestImports,XTestImports", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, &stderr)
	}
	pkgs := make(map[string]*pkg)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(pkg)
		err := dec.Decode(p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatal(err)
		}
		pkgs[p.ImportPath] = p
	}
}

// longestMatch returns the longest of the patterns that match a name, or "".
func longestMatch(patterns []string, name string) (best string) {
	for _, p := range patterns {
		if p == name {
			return p
		}
		tree, isTree := strings.CutSuffix(p, "/...")
		isTree = isTree || strings.Contains(strings.SplitN(p, "/", 2)[0], ".") && p != "."
		if isTree && (name == tree || strings.HasPrefix(name, tree+"/")) && len(p) > len(best) {
			best = p
		}
	}
	return best
}

func isTest(name string) bool { return strings.HasSuffix(path.Base(name), "test") || name == "testenv" }

func isExample(name string) bool {
	return longestMatch([]string{"examples/...", "cmd/armature/template/..."}, name) != ""
}

// namesExample reports whether the rule of a package names an example. Such a package is a program for users of this example.
func namesExample(name string) bool { return slices.ContainsFunc(rules[name], isExample) }

// libraries are top-level trees of packages. A program can use the root package of each library without the other libraries.
var libraries = []string{"rpc", "scheduler", "driver", "db", "service"}

// libraryOf returns the library of a package of this module, or "".
func libraryOf(name string) string {
	if first, _, _ := strings.Cut(name, "/"); slices.Contains(libraries, first) {
		return first
	}
	return ""
}

// libraryMayUse reports whether a package of the library named library may import a package of the library named other.
func libraryMayUse(library, other string) bool {
	for name, allowed := range rules {
		if libraryOf(name) == library && slices.ContainsFunc(allowed, func(a string) bool { return libraryOf(a) == other }) {
			return true
		}
	}
	return false
}

// checkImports returns a sentence for each breach of the import rule.
func checkImports(pkgs map[string]*pkg) (out []string) {
	var keys []string
	for k := range rules {
		keys = append(keys, k)
	}
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, p := range pkgs {
		if !p.own() {
			continue
		}
		name := p.name()
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if isExample(short(i)) && !isExample(name) && !namesExample(name) {
				say("%s imports %s: only examples may import examples", name, short(i))
			}
		}
		for _, i := range p.Imports {
			if !isTest(name) && (i == "testing" || pkgs[i] != nil && pkgs[i].own() && isTest(short(i)) && !slices.Contains(rules[name], short(i))) {
				say("%s imports %s: only tests may import it", name, short(i))
			}
		}
		if isExample(name) {
			continue
		}
		key := longestMatch(keys, name)
		if key == "" {
			say("%s: no rule says what it may import: add a row to the import rule", name)
			continue
		}
		for _, i := range p.Imports {
			if d := pkgs[i]; d != nil && !d.Standard && longestMatch(rules[key], short(i)) == "" {
				say("%s imports %s, which its rule does not allow", name, short(i))
			}
		}
		// The tests of a library may use another library only if a package of the first library may use it.
		for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
			own, other := libraryOf(name), libraryOf(short(i))
			if own != "" && other != "" && own != other && !libraryMayUse(own, other) {
				say("a test of %s imports %s: the packages of %s do not use %s, so their tests may not", name, short(i), own, other)
			}
		}
		// The root packages of two libraries must not need each other, not even through other packages.
		for _, i := range p.Deps {
			if slices.Contains(libraries, name) && slices.Contains(libraries, short(i)) {
				say("%s needs %s: a program must be able to use each of them without the other", name, short(i))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestImportRule: all packages keep the import rule.
func TestImportRule(t *testing.T) {
	t.Parallel()
	for _, s := range checkImports(listPackages(t)) {
		t.Error(s)
	}
}

// TestImportRuleBroken shows that each kind of breach is found.
func TestImportRuleBroken(t *testing.T) {
	t.Parallel()
	own := &struct{ Path string }{module}
	tests := []struct {
		name, path string
		pkg        pkg
		want       []string
	}{
		{name: "allowed", path: "rpc", pkg: pkg{Imports: []string{"context", module + "/fault", module + "/rpc/bus"}}},
		{name: "a part of a library", path: "driver", pkg: pkg{Imports: []string{grpc + "/codes"}}},
		{name: "a test package in tests", path: "rpc", pkg: pkg{XTestImports: []string{module + "/rpc/rpctest", "testing"}}},
		{
			name: "a forbidden library in a test", path: "rpc/amqpbus", pkg: pkg{XTestImports: []string{module + "/service/api"}},
			want: []string{"a test of rpc/amqpbus imports service/api: the packages of rpc do not use service, so their tests may not"},
		},
		{name: "an allowed library in a test", path: "service/api", pkg: pkg{XTestImports: []string{module + "/db/dbtest"}}},
		{name: "examples among themselves", path: "examples/x", pkg: pkg{Imports: []string{module + "/examples/y", amqp}}},
		{
			name: "leaf", path: "fault", pkg: pkg{Imports: []string{module + "/reqctx"}},
			want: []string{"fault imports reqctx, which its rule does not allow"},
		},
		{
			name: "the wrong library", path: "rpc", pkg: pkg{Imports: []string{watermill + "/pubsub/gochannel"}},
			want: []string{"rpc imports " + watermill + "/pubsub/gochannel, which its rule does not allow"},
		},
		{
			name: "a forbidden library through a third package", path: "rpc", pkg: pkg{Deps: []string{module + "/db"}},
			want: []string{"rpc needs db: a program must be able to use each of them without the other"},
		},
		{
			name: "a library whose name begins with that of an allowed library", path: "rpc/amqpbus", pkg: pkg{Imports: []string{amqp + "-extra"}},
			want: []string{"rpc/amqpbus imports " + amqp + "-extra, which its rule does not allow"},
		},
		{
			name: "an example in a test", path: "db", pkg: pkg{TestImports: []string{module + "/examples/x"}},
			want: []string{"db imports examples/x: only examples may import examples"},
		},
		{
			name: "an example and a test package that the rule does not name", path: "cmd/armature",
			pkg: pkg{Imports: []string{module + "/examples/drivers", module + "/driver/drivertest", module + "/examples/hello", module + "/db/dbtest"}},
			want: []string{
				"cmd/armature imports db/dbtest, which its rule does not allow", "cmd/armature imports db/dbtest: only tests may import it",
				"cmd/armature imports examples/hello, which its rule does not allow",
			},
		},
		{
			name: "a test package in an example", path: "examples/x", pkg: pkg{Imports: []string{module + "/rpc/rpctest"}},
			want: []string{"examples/x imports rpc/rpctest: only tests may import it"},
		},
		{
			name: "package testing", path: "service/api", pkg: pkg{Imports: []string{"testing"}},
			want: []string{"service/api imports testing: only tests may import it"},
		},
		{
			name: "a package without a rule", path: "newlibrary",
			want: []string{"newlibrary: no rule says what it may import: add a row to the import rule"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := tt.pkg
			p.ImportPath, p.Module = module+"/"+tt.path, own
			pkgs := map[string]*pkg{p.ImportPath: &p}
			for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
				d := &pkg{ImportPath: i, Standard: !strings.Contains(strings.SplitN(i, "/", 2)[0], ".")}
				if strings.HasPrefix(i, module) {
					d.Module = own
				}
				pkgs[i] = d
			}
			if diff := cmp.Diff(tt.want, checkImports(pkgs)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// libraryPath matches the parts of a library's import path that the table in docs/architecture.md leaves out.
var libraryPath = regexp.MustCompile(`^(github\.com|golang\.org)/|/v[0-9]+$`)

// importTable returns the table of the import rule in docs/architecture.md. Packages with the same allowed imports share a row. The
// test packages have one row.
func importTable() string {
	const indent = 25
	packages := map[string][]string{} // the key is the text of the allowed imports
	for name, allowed := range rules {
		if isTest(name) {
			continue
		}
		var words []string
		for _, a := range allowed {
			words = append(words, libraryPath.ReplaceAllString(a, ""))
		}
		slices.Sort(words)
		text := strings.Join(slices.Compact(words), ", ")
		switch {
		case name == "examples/...", name == "cmd/armature/template/...":
			text = "anything; only examples and cmd/armature may import examples"
		case text == "":
			text = "standard library only"
		}
		packages[text] = append(packages[text], name)
	}
	packages["their package and testing; only tests and cmd/armature may import them"] = []string{"...test packages"}
	var rows []string
	for text, names := range packages {
		slices.Sort(names)
		left := strings.Join(names, ", ")
		if len(left) > indent-2 {
			left += "\n"
			text = strings.Repeat(" ", indent) + text
		}
		rows = append(rows, fmt.Sprintf("%-*s%s\n", indent, left, text))
	}
	slices.Sort(rows)
	return strings.Join(rows, "")
}

// TestImportRuleDocumented: the table in docs/architecture.md is that of the import rule. ARMATURE_UPDATE=1 writes the table.
func TestImportRuleDocumented(t *testing.T) {
	t.Parallel()
	const file = "docs/architecture.md"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), "\n## The import rule\n\n```\n")
	table, after, end := strings.Cut(rest, "```\n")
	if !ok || !end {
		t.Fatalf("%s has no table of the import rule", file)
	}
	diff := cmp.Diff(importTable(), table)
	switch {
	case diff == "":
	case os.Getenv("ARMATURE_UPDATE") == "":
		t.Errorf("the import rule in %s (-wanted +found); ARMATURE_UPDATE=1 writes it:\n%s", file, diff)
	default:
		text := before + "\n## The import rule\n\n```\n" + importTable() + "```\n" + after
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
	}
}

// foreign matches words of a single component, such as Nova. Packages for all components
// must not have such words. NoValidHost does not match, because "oV" has a capital letter.
var foreign = regexp.MustCompile(`([Nn]ova|[Ff]lavor|[Hh]ypervisor|[Gg]lance|[Kk]eystone|[Nn]eutron|[Cc]inder|` +
	`NOVA|FLAVOR|HYPERVISOR|GLANCE|KEYSTONE|NEUTRON|CINDER)`)

// foreignWordsIn returns the identifiers and literals of a file that have a foreign word,
// each with its position. Comments are not checked, because they may name the source of a rule.
func foreignWordsIn(fset *token.FileSet, name string, src any) (out []string, err error) {
	f, err := parser.ParseFile(fset, name, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	ast.Inspect(f, func(n ast.Node) bool {
		text := ""
		switch n := n.(type) {
		case *ast.Ident:
			text = n.Name
		case *ast.BasicLit:
			text = n.Value
		}
		if foreign.MatchString(text) {
			out = append(out, fmt.Sprintf("%v: %s", fset.Position(n.Pos()), text))
		}
		return true
	})
	return out, nil
}

// TestForeignWords: packages for all components have no words of a single component in identifiers and literals.
func TestForeignWords(t *testing.T) {
	t.Parallel()
	fset := token.NewFileSet()
	files := 0
	for _, p := range listPackages(t) {
		if !p.own() || isExample(p.name()) || namesExample(p.name()) {
			continue
		}
		for _, name := range slices.Concat(p.GoFiles, p.IgnoredGoFiles) {
			files++
			found, err := foreignWordsIn(fset, filepath.Join(p.Dir, name), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range found {
				// Keystone is allowed here, because every component authenticates with this identity service.
				identity := []string{"service/auth", "component", "testenv", "internal/testenv", "internal/envtest", "internal/keystonetest"}
				text := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(s, p.Dir)), "keystone", "")
				if slices.Contains(identity, p.name()) && !strings.Contains(text, "nova") {
					continue
				}
				t.Errorf("a word of one component in a package for all components: %s", s)
			}
		}
	}
	if files == 0 {
		t.Error("no file was read")
	}
}

// TestForeignWordsFound: the search finds such words in identifiers and literals, and not in comments.
func TestForeignWordsFound(t *testing.T) {
	t.Parallel()
	const src = "package p\n\n// As in Nova.\nvar FlavorID, NoValidHost = \"nova-api\", 1\n"
	got, err := foreignWordsIn(token.NewFileSet(), "p.go", src)
	want := []string{"p.go:4:5: FlavorID", `p.go:4:29: "nova-api"`}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}
