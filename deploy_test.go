package armature_test

import (
	"cmp"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	prom "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.yaml.in/yaml/v4"

	"github.com/armature-go/armature/db/dbprom"
	"github.com/armature-go/armature/driver/driverprom"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/rpc/rpcprom"
	"github.com/armature-go/armature/scheduler/placement/placementprom"
	"github.com/armature-go/armature/scheduler/schedulerprom"
	"github.com/armature-go/armature/service/api/apiprom"
	"github.com/armature-go/armature/service/auth/authprom"
	"github.com/armature-go/armature/service/membership/membershipprom"
	"github.com/armature-go/armature/service/operation/operationprom"
	"github.com/armature-go/armature/service/serviceprom"
)

// measured maps the packages with metrics to their collectors.
var measured = map[string]prom.Collector{
	"db/dbprom": dbprom.New(), "driver/driverprom": driverprom.New(), "rpc/rpcprom": rpcprom.New(), "scheduler/schedulerprom": schedulerprom.New(),
	"scheduler/placement/placementprom": placementprom.New(), "service/api/apiprom": apiprom.New(), "service/auth/authprom": authprom.New(),
	"service/membership/membershipprom": membershipprom.New(), "service/operation/operationprom": operationprom.New(), "service/serviceprom": serviceprom.New(),
}

// expression is a query of an alert or of a panel.
type expression struct{ name, text string }

// TestDeploy: the alerts and the dashboard of deploy use only metrics and labels that exist. Each alert has a test in
// which the alert fires, and one in which it does not. Prometheus accepts the alerts, their tests and the queries of the
// dashboard.
func TestDeploy(t *testing.T) {
	t.Parallel()
	known := knownMetrics(t)
	alerts, panels := alertExpressions(t), panelExpressions(t)
	for _, e := range slices.Concat(alerts, panels) {
		checkExpression(t, e, known)
	}
	promtool := envtest.Promtool(t)
	dir := t.TempDir()
	var rules strings.Builder // the queries of the panels, as rules, so that Prometheus's own parser checks them
	rules.WriteString("groups:\n- name: panels\n  rules:\n")
	for _, p := range panels {
		text, err := json.Marshal(strings.NewReplacer("$__rate_interval", "5m", "$job", "armature").Replace(p.text))
		if err != nil {
			t.Fatal(err)
		}
		rules.WriteString("  - record: panel\n    labels: {panel: " + string(text) + "}\n    expr: " + string(text) + "\n")
	}
	file := filepath.Join(dir, "panels.yaml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"check", "rules", "deploy/prometheus/alerts.yaml"}, {"check", "rules", file}, {"test", "rules", "deploy/prometheus/alerts_test.yaml"}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	tests := readFile(t, "deploy/prometheus/alerts_test.yaml")
	for _, a := range alerts {
		if !strings.Contains(tests, "alertname: "+a.name+"\n") || !strings.Contains(tests, "alertname: "+a.name+", exp_alerts: []") {
			t.Errorf("alerts_test.yaml has no test in which %s fires, or none in which it does not", a.name)
		}
	}
}

// knownMetrics returns the names of all metrics that a process can have, each with its labels.
func knownMetrics(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.ImportPath}}", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for p := range strings.FieldsSeq(string(out)) {
		if name := strings.TrimPrefix(p, module+"/"); strings.HasSuffix(name, "prom") && measured[name] == nil {
			t.Errorf("package %s is missing in the list of packages with metrics", name)
		}
	}
	known := map[string][]string{"up": nil}
	describe := regexp.MustCompile(`fqName: "([^"]*)".*variableLabels: \{([^}]*)\}`)
	all := []prom.Collector{collectors.NewBuildInfoCollector(), collectors.NewDBStatsCollector(nil, "x")}
	for _, c := range measured {
		all = append(all, c)
	}
	for _, c := range all {
		ch := make(chan *prom.Desc, 100)
		c.Describe(ch)
		close(ch)
		for d := range ch {
			m := describe.FindStringSubmatch(d.String())
			if m == nil {
				t.Fatalf("this description of a metric is not understood: %s", d)
			}
			labels := strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' || r == ' ' })
			known[m[1]] = labels
			if strings.HasSuffix(m[1], "_seconds") {
				known[m[1]+"_bucket"] = append([]string{"le"}, labels...)
			}
		}
	}
	known["go_build_info"] = []string{"path", "version"} // constant labels
	return known
}

var (
	metricName = regexp.MustCompile(`\b(up|armature_[a-z0-9_]+|go_[a-z0-9_]+)\b(?:\{([^}]*)\})?`)
	matcher    = regexp.MustCompile(`([a-z_]+) *(?:=~|!=|!~|=)`)
	grouping   = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// checkExpression checks that the metrics and labels of a query exist. Prometheus itself adds the labels job and instance.
func checkExpression(t *testing.T, e expression, known map[string][]string) {
	t.Helper()
	labels, metrics := []string{"job", "instance"}, metricName.FindAllStringSubmatch(e.text, -1)
	if len(metrics) == 0 {
		t.Errorf("%s: the query has no metric: %s", e.name, e.text)
	}
	for _, m := range metrics {
		own, ok := known[m[1]]
		if !ok {
			t.Errorf("%s: no package has the metric %s", e.name, m[1])
			continue
		}
		labels = append(labels, own...)
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(append([]string{"job", "instance"}, own...), l[1]) {
				t.Errorf("%s: %s has no label %s", e.name, m[1], l[1])
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(e.text, -1) {
		for l := range strings.SplitSeq(g[1], ", ") {
			if !slices.Contains(labels, l) {
				t.Errorf("%s: no metric of the query has the label %s: %s", e.name, l, e.text)
			}
		}
	}
}

// alertExpressions returns the queries of the alerts.
func alertExpressions(t *testing.T) (list []expression) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr         string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(readFile(t, "deploy/prometheus/alerts.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if s := r.Labels["severity"]; s != "page" && s != "ticket" || r.Annotations["summary"] == "" || r.Annotations["action"] == "" {
				t.Errorf("%s: want a severity, page or ticket, a summary and an action", r.Alert)
			}
			list = append(list, expression{r.Alert, r.Expr})
		}
	}
	return list
}

// panelExpressions returns the queries of the dashboard, and checks that its panels do not overlap.
func panelExpressions(t *testing.T) (list []expression) {
	t.Helper()
	type position struct{ H, W, X, Y int }
	var board struct {
		Panels []struct {
			ID          int
			Type, Title string
			GridPos     position
			Targets     []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, "deploy/grafana/armature.json")), &board); err != nil {
		t.Fatal(err)
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("panel %s: the id %d is used twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if at[0] >= 24 || taken[at] != "" {
					t.Fatalf("panel %s overlaps %s", p.Title, cmp.Or(taken[at], "the edge"))
				}
				taken[at] = p.Title
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %s has no query", p.Title)
		}
		for _, q := range p.Targets {
			list = append(list, expression{p.Title, q.Expr})
		}
	}
	return list
}
