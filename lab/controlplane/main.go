// Command controlplane is Kubernetes in one program: the control plane, and the agents of a real node. The first argument (or the name under which
// the program is called) selects the component; what follows are that component's own flags.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components holds what the program can run. Each takes its own name and flags, and returns the exit status.
var components = map[string]func(args []string) int{
	"etcd":                    etcd,
	"kube-apiserver":          command(apiserver.NewAPIServerCommand),
	"kube-controller-manager": command(controllermanager.NewControllerManagerCommand),
	"kube-scheduler":          command(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kubelet":                 command(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	"kube-proxy":              command(proxy.NewProxyCommand),
	"service-account-key":     serviceAccountKey,
}

func main() {
	args := os.Args
	args[0] = filepath.Base(args[0])
	if _, known := components[args[0]]; !known && len(args) > 1 {
		args = args[1:]
	}
	run, known := components[args[0]]
	if !known {
		names := slices.Sorted(maps.Keys(components))
		fmt.Fprintf(os.Stderr, "usage: controlplane %s [flags]\n", strings.Join(names, "|"))
		os.Exit(2)
	}
	os.Exit(run(args))
}

func etcd(args []string) int {
	os.Args = args // etcd looks at these for its subcommands
	etcdmain.Main(args)
	return 0
}

func command(build func() *cobra.Command) func([]string) int {
	return func(args []string) int {
		os.Args = args
		return cli.Run(build())
	}
}

// serviceAccountKey writes a new key that signs and verifies service account tokens, so that a lab needs no openssl.
func serviceAccountKey(args []string) int {
	if len(args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: controlplane service-account-key FILE")
		return 2
	}
	key, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err == nil {
		err = keyutil.WriteKey(args[1], key)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
