package armature_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/internal/envtest"
)

const changingFile = "docs/changing-a-component.md"

// TestChanging writes a component with the command armature, and makes the changes of docs/changing-a-component.md, which end with the
// component's own tests. It replaces only the paths of the clone and of the component. With ARMATURE_UPDATE=1 it writes the output into the
// document.
func TestChanging(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds programs: left out with -short")
	}
	readTree(t) // the commands build most packages
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	document, dir := readFile(t, changingFile), t.TempDir()
	steps := documentSteps(document)
	if len(steps) < 10 || steps[0].commands != cloneCommand+"\n" {
		t.Fatalf("%s has only %d blocks of commands, or does not begin with the clone", changingFile, len(steps))
	}
	component := filepath.Join(dir, "backup")
	toTest := strings.NewReplacer("go -C armature", "go -C "+root, "--dir ../backup", "--dir "+component)
	outputs := play(t, dir, toTest.Replace(scriptOf(steps[1:])), len(steps)-1)
	comparePrinted(t, changingFile, document, steps[1:], outputs, strings.NewReplacer(component, "backup"))
	const judge = `test -z "$(gofmt -l .)" && go mod tidy -diff`
	if out, err := sh(t, component, judge); err != nil {
		t.Errorf("%s: %v: %s", judge, err, out)
	}
	if readme := readFile(t, filepath.Join(component, "README.md")); !strings.Contains(readme, "/"+changingFile+")") {
		t.Errorf("the README.md of a new component does not link to %s", changingFile)
	}
	alerts := filepath.Join(component, "alerts.yaml")
	if !strings.Contains(readFile(t, alerts), "backup_lost_total[") || !strings.Contains(readFile(t, filepath.Join(component, "conductor.go")), `Name: "backup_lost_total"`) {
		t.Error("the alert is not about the metric")
	}
	if out, err := exec.CommandContext(t.Context(), envtest.Promtool(t), "check", "rules", alerts).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}
