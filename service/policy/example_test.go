package policy_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/armature-go/armature/service/policy"
)

// Sample writes a file for operators: all rules with their defaults, as comments.
func ExampleSample() {
	err := policy.Sample(os.Stdout, []policy.Rule{
		{
			Name:        "volume:delete",
			Check:       "role:admin or project_id:%(project_id)s",
			Description: "Delete a volume.",
			Operations:  []policy.Operation{{Method: "DELETE", Path: "/v3/volumes/{id}"}},
		},
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// # Delete a volume.
	// # DELETE /v3/volumes/{id}
	// #"volume:delete": "role:admin or project_id:%(project_id)s"
}

// An operator's file replaces the check of a rule. Rules returns the active checks with their origins.
func ExampleEnforcer_Rules() {
	dir, err := os.MkdirTemp("", "policy")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(file, []byte(`"volume:delete": "role:admin"`), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	p, err := policy.New([]policy.Rule{
		{Name: "volume:delete", Check: "project_id:%(project_id)s"},
		{Name: "volume:show", Check: "role:reader"},
	}, policy.Config{File: file})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, r := range p.Rules() {
		fmt.Println(r.Name, r.Check, filepath.Base(r.Where))
	}
	// Output:
	// volume:delete role:admin policy.yaml:1
	// volume:show role:reader default
}
