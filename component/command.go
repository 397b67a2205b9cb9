package component

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/text"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/config"
)

// commandNames are the names that no service can have: those of the commands of this package, of
// cobra, and of a command upgrade, which a component may add.
var commandNames = []string{"db", "upgrade", "config", "policy", "operation", "placement", "dlq", "member", "status", "version", "openapi", "completion", "help"}

// flags are the flags of the command line.
type flags struct {
	config config.Source
	values []*flagValue
	output string
}

// flagValue is the value of a flag that sets an option. A flag that is not given, or empty, sets nothing.
type flagValue struct {
	Flag

	value string
}

// command returns the root command, with all commands and flags of the program.
func (r *runtime[O]) command(env []string) *cobra.Command {
	f := &flags{config: config.Source{Env: env, Defaults: r.c.defaults()}}
	name := r.c.Name
	root := &cobra.Command{
		Use: name, Short: r.c.Short + "; without a command, all services in one process", Args: noArguments,
		Long: strings.TrimSpace(r.c.Long+"\n\n"+r.c.Short) + ". Without a command, all services run in one process.\n\n" +
			"A command without --config-file and --config-dir reads " + name + ".conf and " + name + ".conf.d in ~/." + name + " or /etc/" + name + ".\n\n" +
			"The commands for operators work on the database that these files name. With --state-path DIR they work on the database of the process with all services that was started with the same flag.",
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.openByDefault(f); err != nil {
				return err
			}
			return r.runService(cmd.Context(), f, AllInOne)
		},
	}
	root.SetOut(r.out)
	root.SetErr(r.err)
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains(formats, f.output) {
			return unknownName("format", f.output, slices.Values(formats))
		}
		if f.output != formatTable && r.printsNoData(cmd) {
			return usageError{fault.New(fault.Invalid, "%s has only one format: leave out --output", cmd.CommandPath())}
		}
		if len(f.config.Files) > 0 || cmd == root { // the process with all services needs no files, and reads only files that a flag names
			return nil
		}
		home, _ := os.UserHomeDir() // without a home directory, only the files of the system are read
		f.config.Files = config.Find(home, name, "")
		return nil
	}
	p := root.PersistentFlags()
	f.config.AddFlags(p)
	for _, one := range append([]Flag{{"state-path", "state_path", "directory of the state (option state_path); a command for operators finds the database of a process with all services there"}}, r.c.Flags...) {
		v := &flagValue{Flag: one}
		p.StringVar(&v.value, v.Name, "", v.Help)
		f.values = append(f.values, v)
	}
	p.StringVarP(&f.output, "output", "o", formatTable, "format of the output: "+strings.Join(formats, ", "))
	for _, s := range r.c.Services {
		root.AddCommand(&cobra.Command{
			Use: s.Name, Short: s.Short, Args: noArguments,
			RunE: func(cmd *cobra.Command, _ []string) error { return r.runService(cmd.Context(), f, s.Name) },
		})
	}
	r.addTools(root, &Tool[O]{r: r, f: f, Out: r.out})
	checkArguments(root)
	return root
}

// printsNoData reports whether a command runs a service, or prints a file, such as a sample.
func (r *runtime[O]) printsNoData(cmd *cobra.Command) bool {
	isService := slices.ContainsFunc(r.c.Services, func(s Service[O]) bool { return cmd.Parent() == cmd.Root() && s.Name == cmd.Name() })
	return cmd == cmd.Root() || isService || cmd.Name() == "sample" || cmd.HasParent() && cmd.Parent().Name() == "completion"
}

// addTools adds the commands for operators. The fields of the component select them.
func (r *runtime[O]) addTools(root *cobra.Command, t *Tool[O]) {
	root.AddCommand(t.configCommand(), t.versionCommand(), t.statusCommand())
	if r.c.Migrations != nil {
		root.AddCommand(t.databaseCommand(), t.operationCommand(), t.memberCommand())
	}
	if r.c.Audit != nil {
		root.AddCommand(t.placementCommand())
	}
	if r.c.Rules != nil {
		root.AddCommand(t.policyCommand())
	}
	if len(r.c.Interfaces) > 0 {
		root.AddCommand(t.dlqCommand())
	}
	if r.c.OpenAPI != nil || findOptions[AccessOptions](new(O)) != nil {
		root.AddCommand(t.openapiCommand())
	}
	if r.c.Commands != nil {
		root.AddCommand(r.c.Commands(t)...)
	}
}

// unknownName returns an error about a name that does not exist. The error names the nearest existing name, or all names if
// none is near. Only the last word of the name is compared.
func unknownName(what, name string, known func(yield func(string) bool)) error {
	const few = 8
	hint := text.Nearest(name[strings.LastIndex(name, " ")+1:], known)
	if all := slices.Collect(known); hint == "" && len(all) <= few {
		hint = "; use one of: " + strings.Join(all, ", ")
	}
	return usageError{fault.New(fault.Invalid, "%s %q does not exist%s", what, name, hint)}
}

// noArguments refuses arguments of a command that has none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fault.New(fault.Invalid, "%s has no arguments: remove %q", cmd.CommandPath(), strings.Join(args, " "))
	}
	return nil
}

// checkArguments makes a command and its subcommands return a usageError for wrong arguments, wrong flags and unknown commands.
func checkArguments(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{hintFlag(cmd, err)} })
	args := cmd.Args
	if cmd.HasSubCommands() {
		args = refuseUnknownCommand
		if cmd.RunE == nil {
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if args == nil {
			return nil
		}
		if err := args(cmd, given); err != nil {
			return usageError{err}
		}
		return nil
	}
	for _, c := range cmd.Commands() {
		checkArguments(c)
	}
}

// flagName matches the name of a flag in the usage text of a command.
var flagName = regexp.MustCompile(`(?m)^\s+(?:-\w, )?--(\S+)`)

// hintFlag adds the most similar flag of a command to the error about a flag that the command does not have. It returns other errors as they are.
func hintFlag(cmd *cobra.Command, err error) error {
	var unknown interface{ GetSpecifiedName() string }
	if !errors.As(err, &unknown) || len(unknown.GetSpecifiedName()) < 2 {
		return err
	}
	var known []string
	for _, found := range flagName.FindAllStringSubmatch(cmd.Flags().FlagUsages(), -1) {
		known = append(known, "--"+found[1])
	}
	return fmt.Errorf("%w%s", err, text.Nearest("--"+unknown.GetSpecifiedName(), slices.Values(known)))
}

// refuseUnknownCommand refuses the arguments of a command with sub-commands: the first one is not the name of a sub-command.
func refuseUnknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	path := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name())
	return unknownName("command", strings.TrimSpace(path+" "+args[0]), slices.Values(names))
}

// loadedOptions are the options of a process.
type loadedOptions[O any] struct {
	config *config.Config[O]
	opts   *O       // the options at the start; the host's name is set
	base   *Options // the Options that opts embeds
	log    *slog.Logger
	level  *slog.LevelVar    // the level of log
	flags  map[string]string // the flags that set options, by the option: {"state_path": "--state-path"}
	sync   string            // the whole command "db sync" with the flags of this command
	wrong  map[string]bool   // options, SECTION.NAME, with a known error; placeAll leaves out further errors about them
}

// source returns the sources of the options.
func (f *flags) source() config.Source {
	src := f.config
	src.Flags, src.FlagNames = map[string]string{}, map[string]string{}
	for _, v := range f.values {
		src.FlagNames[v.Option] = "--" + v.Name
		if v.value != "" {
			src.Flags[v.Option] = v.value
		}
	}
	return src
}

// openByDefault makes noauth2 the default of the process with all services. If an option about clients' identity is set, the default
// stays keystone.
func (r *runtime[O]) openByDefault(f *flags) error {
	const strategy = "api.auth_strategy"
	if findOptions[AccessOptions](new(O)) == nil || f.config.Defaults[strategy] != "" {
		return nil
	}
	f.config.Defaults[strategy] = "noauth2"
	src := f.source()
	src.Logger = quiet // load reads the options again and logs their warnings
	c, err := config.Inspect[O](src)
	if c == nil {
		return err
	}
	for _, v := range c.Values() {
		if v.Where != "default" && (v.Section == "keystone_authtoken" || v.Section == "api" && v.Name == "token") {
			delete(f.config.Defaults, strategy)
		}
	}
	return nil
}

// load reads the options. The error has a line for each wrong option.
func (r *runtime[O]) load(f *flags) (*loadedOptions[O], error) {
	l, err := r.read(f)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// read is like load, but returns the options even with an error, so that the caller can look for further errors. The options
// are nil if a file cannot be read.
func (r *runtime[O]) read(f *flags) (*loadedOptions[O], error) {
	src := f.source()
	src.Logger = quiet
	early, err := config.Inspect[O](src) // for the format of the log, which the second reading uses
	if early == nil {
		return nil, err
	}
	level := new(slog.LevelVar)
	src.Logger = newLogger(r.err, findOptions[Options](early.Current()), level)
	c, err := config.Inspect[O](src)
	if c == nil {
		return nil, err
	}
	l := &loadedOptions[O]{config: c, log: src.Logger, level: level, flags: src.FlagNames, wrong: map[string]bool{}}
	l.sync = r.c.Name + " db sync"
	for _, path := range c.Files() {
		l.sync += " --config-file " + text.ShellWord(path)
	}
	for _, v := range f.values {
		if v.Option == "state_path" && v.value != "" {
			l.sync += " --" + v.Name + " " + text.ShellWord(v.value)
		}
	}
	for _, v := range c.Values() {
		l.wrong[v.Section+"."+v.Name] = v.Wrong
	}
	l.opts = new(O)
	*l.opts = *c.Current() // a copy: the changes below do not affect c
	l.base = findOptions[Options](l.opts)
	host, herr := hostName(l.base)
	if l.base.Host = host; checkHost(host) != nil {
		l.base.Host = "wrong" // a valid name, so that the caller can look for further errors
	}
	c.OnChange(nil, func(_, next *O) { setLevel(level, findOptions[Options](next)) })
	return l, errors.Join(err, herr)
}

// errSchemaOlder matches the error of db.Check for a schema that is older than the program's.
var errSchemaOlder = fault.Sentinel(fault.Precondition, "SchemaOlder", "schema too old")

// nameSync adds the command that upgrades the schema to an error about an older schema. It returns other errors as they are.
func (l *loadedOptions[O]) nameSync(err error) error {
	if !errors.Is(err, errSchemaOlder) {
		return err
	}
	return fmt.Errorf("%w: run %s", err, l.sync)
}

// forService returns a copy of the options for one of several services. The copies share the map of wrong options.
func (l *loadedOptions[O]) forService() *loadedOptions[O] {
	one := *l
	one.opts = new(O)
	*one.opts = *l.opts
	one.base = findOptions[Options](one.opts)
	return &one
}

// newLogger returns a logger that writes to w and adds the ids of the request. newLogger sets level to the level
// that the options name.
func newLogger(w io.Writer, o *Options, level *slog.LevelVar) *slog.Logger {
	setLevel(level, o)
	how := &slog.HandlerOptions{Level: level}
	if o.UseJSON {
		return slog.New(reqctx.LogHandler(slog.NewJSONHandler(w, how)))
	}
	return slog.New(reqctx.LogHandler(slog.NewTextHandler(w, how)))
}

func setLevel(level *slog.LevelVar, o *Options) {
	level.Set(slog.LevelInfo)
	if o.Debug {
		level.Set(slog.LevelDebug)
	}
}

// Tool provides the options, the database and the output to a command for operators. Call its methods only in RunE of a command, where
// the flags are parsed.
type Tool[O any] struct {
	// Out is the standard output.
	Out io.Writer

	r         *runtime[O]
	f         *flags
	documents int // number of documents that were printed as YAML
}

// WithDatabase calls do with the database that the options name. The tables must be those of this version of the program. If no connection
// is configured, the database is the SQLite file of the process with all services, if that file exists.
func (t *Tool[O]) WithDatabase(ctx context.Context, do func(ctx context.Context, o *O, d *sqlx.DB) error) error {
	return t.withDatabase(ctx, func(ctx context.Context, l *loadedOptions[O], d *sqlx.DB) error {
		if _, err := db.Check(ctx, d, t.r.c.migrations()...); err != nil {
			return l.nameSync(err)
		}
		return do(ctx, l.opts, d)
	})
}

// withDatabase is WithDatabase for tables of any version.
func (t *Tool[O]) withDatabase(ctx context.Context, do func(ctx context.Context, l *loadedOptions[O], d *sqlx.DB) error) error {
	l, err := t.r.load(t.f)
	if err != nil {
		return err
	}
	cfg := l.base.Database.Config()
	cfg.Logger = l.log
	if cfg.URL == "" && l.base.StatePath != "" {
		embedded, path, err := embeddedDatabase(t.r.c.databaseFile(), l.base.StatePath)
		if err != nil {
			return err
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return l.place(optionError("state_path", fault.New(fault.NotFound,
				"%s, the database of a process with all services, does not exist: use the directory of the --state-path with which this process was started, or set connection of [database]", path)))
		} else if err != nil {
			return l.place(optionError("state_path", fmt.Errorf("the database of the process with all services: %w", err)))
		}
		cfg.URL = embedded
	}
	if cfg.URL == "" {
		return l.place(optionError("database.connection", fmt.Errorf("%w; or use --state-path with the directory of a process with all services", errNoDatabase)))
	}
	d, err := db.Open(ctx, cfg)
	if err != nil {
		return l.place(optionError("database.connection", err))
	}
	return errors.Join(do(ctx, l, d), d.Close())
}

// versionCommand returns the command that prints the version of the program.
func (t *Tool[O]) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of the program", Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Name    string `json:"name"`
				Version string `json:"version"`
				Go      string `json:"go"`
			}{Name: t.r.c.Name, Version: "unknown"}
			if info, ok := debug.ReadBuildInfo(); ok {
				v.Version, v.Go = info.Main.Version, info.GoVersion
			}
			return t.Print([]string{"name", "version", "go"}, [][]string{{v.Name, v.Version, v.Go}}, v)
		},
	}
}

// openapiCommand returns the command that prints the OpenAPI document of the REST API.
func (t *Tool[O]) openapiCommand() *cobra.Command {
	var version string
	var history bool
	cmd := &cobra.Command{
		Use: "openapi", Short: "Print the OpenAPI 3.1 document of the REST API, or what each microversion changes", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if history {
				return t.printHistory(cmd.Context())
			}
			doc, err := t.document(cmd.Context(), version)
			if err != nil {
				return err
			}
			if t.f.output == formatTable {
				return t.printAs(formatJSON, doc)
			}
			return t.printAs(t.f.output, doc)
		},
	}
	cmd.Flags().StringVar(&version, "version", "", "microversion (default: the first)")
	cmd.Flags().BoolVar(&history, "history", false, "print a table of the microversions after the first one: what each changes, and in which routes or resources")
	cmd.MarkFlagsMutuallyExclusive("version", "history")
	return cmd
}

// document returns the OpenAPI document in a microversion.
func (t *Tool[O]) document(ctx context.Context, version string) (doc any, err error) {
	if t.r.c.OpenAPI != nil {
		return t.r.c.OpenAPI(version)
	}
	var v api.Version
	if version != "" {
		if v, err = api.ParseVersion(version); err != nil {
			return nil, usageError{err}
		}
	}
	err = t.withRoutes(ctx, func(m *api.Mux) error {
		doc = m.OpenAPI(api.About{Title: t.r.c.Name, Description: t.r.c.Short, Version: "1"}, v)
		return nil
	})
	return doc, err
}

// printHistory prints what each microversion changes: the component's description, and below it what the routes and their types declare.
func (t *Tool[O]) printHistory(ctx context.Context) error {
	return t.withRoutes(ctx, func(m *api.Mux) error {
		var rows [][]string
		data := []map[string]string{}
		list := slices.Concat(t.r.c.Changes, m.History())
		slices.SortStableFunc(list, func(a, b api.Change) int {
			return cmp.Or(cmp.Compare(a.Version.Major, b.Version.Major), cmp.Compare(a.Version.Minor, b.Version.Minor))
		})
		for _, c := range list {
			version := c.Version.String()
			rows = append(rows, []string{version, c.Where, c.What})
			data = append(data, map[string]string{"version": version, "where": c.Where, "what": c.What})
		}
		return t.Print([]string{"version", "where", "what"}, rows, data)
	})
}

// withRoutes wires the services, without starting them and without the options of an operator, and calls do with their routes.
func (t *Tool[O]) withRoutes(ctx context.Context, do func(m *api.Mux) error) error {
	overrides := map[string]string{"transport_url": "memory://", "database.connection": "sqlite:///:memory:", "api.auth_strategy": "noauth2"}
	if findOptions[APIOptions](new(O)) != nil {
		overrides["listen"] = "127.0.0.1:0"
	}
	l, err := t.r.load(&flags{config: config.Source{Defaults: t.f.config.Defaults, Overrides: overrides}})
	if err != nil {
		return err
	}
	p, err := t.r.wire(ctx, l, AllInOne, quiet, true)
	if err != nil {
		return err
	}
	if p.mux == nil {
		return errors.Join(fault.New(fault.Precondition, "no service has a REST API"), p.closeAll())
	}
	return errors.Join(do(p.mux), p.closeAll())
}
