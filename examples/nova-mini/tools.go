package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/service/config"
	"github.com/armature-go/armature/service/policy"
)

// configCommand is what an operator asks about options.
func (f *flags) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Options: a sample file, and whether a file is right"}
	cmd.AddCommand(&cobra.Command{
		Use: "sample", Short: "Print a file with all options", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return config.Sample(f.out, new(settings)) },
	}, &cobra.Command{
		Use: "validate", Short: "Say all that is wrong with the configuration, or where each option stands", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := config.Open[settings](f.source())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			for _, v := range c.Values() {
				_, _ = fmt.Fprintf(w, "[%s]\t%s\t%s\t%s\n", v.Section, v.Name, v.Value, v.Where) // Flush has the error
			}
			return w.Flush()
		},
	})
	return cmd
}

// policyCommand is what an operator asks about rules.
func (f *flags) policyCommand() *cobra.Command {
	open := func() (*policy.Enforcer, error) {
		o, err := f.load()
		if err != nil {
			return nil, err
		}
		return policy.New(api.Rules(), policy.Config{File: o.Policy.File, Dirs: o.Policy.Dirs})
	}
	cmd := &cobra.Command{Use: "policy", Short: "Rules: a sample file, those in force, and why one denies"}
	var rule, user, project, system, owner string
	var roles []string
	explain := &cobra.Command{
		Use: "explain", Short: "Say which part of a rule denies or allows", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			p, err := open()
			if err != nil {
				return err
			}
			c := policy.Credentials{UserID: user, ProjectID: project, SystemScope: system, Roles: roles}
			var target map[string]any
			if owner != "" {
				target = map[string]any{"project_id": owner}
			}
			_, err = fmt.Fprint(f.out, p.Explain(c, rule, target))
			return err
		},
	}
	flags := explain.Flags()
	flags.StringVar(&rule, "rule", "", "name of the rule")
	flags.StringVar(&user, "user", "", "id of who asks")
	flags.StringVar(&project, "project", "", "id of their project")
	flags.StringVar(&system, "system", "", "all, for a token of the whole system")
	flags.StringSliceVar(&roles, "role", nil, "their roles")
	flags.StringVar(&owner, "owner", "", "id of the project that owns what they ask for (default: their own)")
	_ = explain.MarkFlagRequired("rule") // it is there
	cmd.AddCommand(explain, &cobra.Command{
		Use: "sample", Short: "Print a file with all rules", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return policy.Sample(f.out, api.Rules()) },
	}, &cobra.Command{
		Use: "list", Short: "List the rules in force, and where they stand", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			p, err := open()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			for _, r := range p.Rules() {
				note := strings.Repeat(" (repeats the default)", map[bool]int{true: 1}[r.Redundant])
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s%s\n", r.Name, r.Check, r.Where, note) // Flush has the error
			}
			return w.Flush()
		},
	})
	return cmd
}

// openapiCommand prints what the REST API is.
func (f *flags) openapiCommand() *cobra.Command {
	var version string
	cmd := &cobra.Command{
		Use: "openapi", Short: "Print the OpenAPI 3.1 document of the REST API", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			doc, err := api.OpenAPI(version)
			if err != nil {
				return err
			}
			enc := json.NewEncoder(f.out)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			return enc.Encode(doc)
		},
	}
	cmd.Flags().StringVar(&version, "version", "2.1", "microversion")
	return cmd
}
