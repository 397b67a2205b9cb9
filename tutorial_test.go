package armature_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

const (
	tutorialFile = "docs/tutorial.md"
	// tutorialServices begins the part of the tutorial that needs RabbitMQ and MariaDB.
	tutorialServices = "\n## 5. "
)

// fenced matches a block of a document: its kind, and its text.
var fenced = regexp.MustCompile("(?ms)^```([a-z ]+)\n(.*?)^```$")

// documentStep is a block of commands, and the output that the document shows for them.
type documentStep struct {
	commands string
	fails    bool // the block is marked with "sh fails": the commands end with an error
	prints   bool // a block of text follows
	printed  string
	from, to int // the first and the last line of the block of text
}

// documentSteps returns the blocks of commands of a document. A block of kind console is not a step: it has commands that need other software.
func documentSteps(text string) (steps []documentStep) {
	afterStep := false
	for _, at := range fenced.FindAllStringSubmatchIndex(text, -1) {
		kind, block := text[at[2]:at[3]], text[at[4]:at[5]]
		switch kind {
		case "sh", "sh fails":
			steps = append(steps, documentStep{commands: block, fails: kind == "sh fails"})
		case "text":
			if last := len(steps) - 1; afterStep {
				steps[last].prints, steps[last].printed, steps[last].from, steps[last].to = true, block, at[4], at[5]
			}
		}
		afterStep = strings.HasPrefix(kind, "sh")
	}
	return steps
}

// stepMark is printed before each step, with its number.
const stepMark = "@@@ step "

// scriptOf returns a script that runs the steps, and ends at the first step that does not end as the document says.
func scriptOf(steps []documentStep) string {
	var b strings.Builder
	for i, s := range steps {
		fmt.Fprintf(&b, "echo '%s%d'\n", stepMark, i)
		if s.fails {
			fmt.Fprintf(&b, "if\n%sthen echo the step has not failed; exit 1; fi\n", s.commands)
		} else {
			b.WriteString(s.commands)
		}
	}
	fmt.Fprintf(&b, "echo '%s%d'\n", stepMark, len(steps))
	return b.String()
}

// varying matches the parts of an output that differ from run to run. Each is replaced by its name.
var varying = []struct {
	is   *regexp.Regexp
	name string
}{
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "TIME"},
	{regexp.MustCompile(`\b\d+(\.\d+)?(µs|ms|s)\b`), "DURATION"},
	{regexp.MustCompile(`127\.0\.0\.1:\d{5}\b`), "ADDRESS"},
	{regexp.MustCompile(`\bworker-[12]\b`), "worker-N"},
	{regexp.MustCompile(`\S+/[0-9A-Z]{8}\b`), "PROCESS"},
	{regexp.MustCompile(` +\n`), "\n"},
	{regexp.MustCompile(` {2,}`), " "},
}

// withoutVarying replaces the varying parts of an output by their names.
func withoutVarying(text string) string {
	for _, v := range varying {
		text = v.is.ReplaceAllString(text, v.name)
	}
	return strings.TrimSpace(text)
}

// TestTutorial runs the commands of docs/tutorial.md in an empty directory, one block after the other in one shell, as a reader does, and
// compares their output with the document. It changes only addresses, because several tests run at the same time, and the path of the clone,
// which is this directory. With ARMATURE_UPDATE=1 it writes the output into the document.
func TestTutorial(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds programs: left out with -short")
	}
	readTree(t) // the commands build most packages
	document := readFile(t, tutorialFile)
	alone, _, found := strings.Cut(document, tutorialServices)
	if !found {
		t.Fatalf("%s has no part %q", tutorialFile, tutorialServices)
	}
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	words := []string{"127.0.0.1:8780", envtest.FreeAddr(t), "../armature", root}
	text, spans := alone, new(spanCounter)
	if complete := os.Getenv(testenv.AMQPVar) != "" && os.Getenv(testenv.MySQLVar) != "" || os.Getenv("CI") != ""; complete {
		otlp := httptest.NewServer(spans)
		defer otlp.Close()
		text = document
		words = append(words, "rabbit://guest:guest@127.0.0.1:5672/", strings.Replace(envtest.URL(t, testenv.AMQPVar), "amqp://", "rabbit://", 1),
			"mysql://sites:secret@127.0.0.1:3306/sites", dbtest.MySQL(t), "http://127.0.0.1:4318", otlp.URL)
	}
	back := []string{host, "my-host"}
	for i := 0; i < len(words); i += 2 {
		back = append(back, words[i+1], words[i])
	}
	steps := documentSteps(text)
	if len(steps) < 10 || steps[0].commands != cloneCommand+"\n" {
		t.Fatalf("%s has only %d blocks of commands, or does not begin with the clone", tutorialFile, len(steps))
	}
	dir := t.TempDir()
	outputs := play(t, dir, strings.NewReplacer(words...).Replace(scriptOf(steps[1:])), len(steps)-1)
	comparePrinted(t, tutorialFile, document, steps[1:], outputs, strings.NewReplacer(back...))
	const judge = `test -z "$(gofmt -l .)" && go vet ./...`
	if out, err := sh(t, filepath.Join(dir, "sites"), judge); err != nil {
		t.Errorf("%s: %v: %s", judge, err, out)
	}
	envtest.URL(t, testenv.AMQPVar) // skips the rest of the tutorial, which needs services
	spans.check(t, "sites-api", "sites-worker")
}

// comparePrinted compares the output of steps with the document of the steps. toDocument replaces texts of the test's output, such as
// addresses, by those of the document. With ARMATURE_UPDATE=1 comparePrinted writes the output into the document.
func comparePrinted(t *testing.T, file, document string, steps []documentStep, outputs []string, toDocument *strings.Replacer) {
	t.Helper()
	update := os.Getenv("ARMATURE_UPDATE") != ""
	for i, output := range slices.Backward(outputs) { // the last output first, so that the places of earlier outputs do not change
		step, got := steps[i], toDocument.Replace(output)
		diff := cmp.Diff(withoutVarying(step.printed), withoutVarying(got))
		if diff == "" {
			continue
		}
		if !update || !step.prints {
			t.Errorf("%s\nshown (-), printed (+):\n%s", step.commands, diff)
			continue
		}
		document = document[:step.from] + strings.TrimRight(got, "\n") + "\n" + document[step.to:]
	}
	if update {
		if err := os.WriteFile(file, []byte(document), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// play runs a script of steps in a directory, and returns the output of each step. If a step fails, play ends the test.
func play(t *testing.T, dir, script string, steps int) (outputs []string) {
	t.Helper()
	b := inBackground(t, dir, script, []string{"OS_DEFAULT__CONTROL_EXCHANGE=tutorial-" + strconv.FormatUint(uint64(rand.Uint32()), 10)})
	defer func() { _ = syscall.Kill(-b.guard.Process.Pid, syscall.SIGKILL) }() // also the processes that the script has left
	ended := make(chan error, 1)
	go func() { ended <- b.cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-time.After(5 * time.Minute):
		err = errors.New("not ended after 5 minutes")
	}
	parts := regexp.MustCompile(stepMark+`\d+\n`).Split(strings.ReplaceAll(b.printed(), "\r", ""), -1) // curl prints headers with \r
	if err != nil || len(parts) != steps+2 {
		logs, _ := sh(t, dir, "tail -n 5 sites/*.log") // if the first steps fail, there are no logs
		t.Fatalf("step %d of %d: %v: %s\n%s", len(parts)-1, steps, err, parts[len(parts)-1], logs)
	}
	return parts[1 : len(parts)-1]
}

// spanCounter is an OTLP collector that keeps the names of the services that have sent spans.
type spanCounter struct {
	mu       sync.Mutex
	services []string
}

func (c *spanCounter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	var in collector.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(raw, &in) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range in.GetResourceSpans() {
		for _, a := range of.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				c.services = append(c.services, a.GetValue().GetStringValue())
			}
		}
	}
}

// check fails the test if a service has sent no span.
func (c *spanCounter) check(t *testing.T, services ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range services {
		if !slices.Contains(c.services, name) {
			t.Errorf("%s has sent no spans: %q", name, c.services)
		}
	}
}
